"""The conformance kit catches what it is for: each broken part here fails the check that names its fault."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from faulty_parts import (
    Attached,
    BatchNorm,
    BeyondHalf,
    Bigram,
    Book,
    Config,
    Copied,
    Denoiser,
    Flipped,
    ForgetsPrefix,
    GlobalNoise,
    Half,
    HiddenState,
    Leaky,
    LeftPadded,
    Letters,
    Loose,
    MadeByItsParent,
    MaskIsZero,
    Mixing,
    NeighbourSeed,
    NoGradient,
    Normalised,
    NotFinite,
    OneTooMany,
    OtherGrid,
    PastItsArguments,
    Refined,
    SeesPadding,
    SetByItsParent,
    Shouting,
    Summed,
    TakesAnyPrefix,
    ThirtyTwo,
    Tied,
    TooBright,
    Undroppable,
    UsedOutside,
    WrongCache,
    case,
)
from torch import nn

from zoo.errors import NotInstalled
from zoo.testing import (
    behaviours,
    cases,
    codebooks,
    conformance,
    denoisers,
    generators,
    losses,
    modules,
    priors,
    tokenizers,
)
from zoo.testing.kit import Case, Pictures, close, global_random_state_kept, need


def test_a_right_part_passes_every_check() -> None:
    for check in behaviours("prior"):
        check(case("prior", Bigram))
        check(case("prior", Bigram, Config(cond_drop=0.0)))
    losses.loss_trains_with_scaled_branches(case("prior", Refined))


@pytest.mark.parametrize(
    ("cls", "check", "text"),
    [
        (Leaky, priors.causal_to_the_bit, "sees code"),
        (Leaky, priors.sampling_equals_its_logits, "not the argmax"),
        (Mixing, priors.logits_ignore_neighbours, "depend on the rows beside it"),
        (Undroppable, priors.dropped_condition_is_unseen, "a dropped condition is seen"),
        (SeesPadding, priors.padding_is_unseen, "padding are seen"),
        (GlobalNoise, priors.samples_are_codes, "torch's global generator"),
        (GlobalNoise, losses.loss_draws_from_its_rng_alone, "torch's global generator"),
        (WrongCache, priors.sampling_equals_its_logits, "not the argmax"),
        (ForgetsPrefix, priors.prefix_is_kept, "a given code is changed"),
        (TakesAnyPrefix, priors.prefix_is_kept, "prefix"),
        (NeighbourSeed, priors.samples_ignore_neighbours, "depends on the rows beside it"),
        (Summed, losses.loss_is_a_mean_over_samples, "not the mean of its halves"),
        (NoGradient, losses.loss_has_a_gradient, "no gradient"),
        (NotFinite, losses.loss_is_a_finite_scalar, "inf"),
        (Attached, losses.loss_is_a_finite_scalar, "'also' carries a gradient"),
        (Half, losses.loss_is_finite_in_bfloat16, "float32"),
        (UsedOutside, losses.loss_trains_with_scaled_branches, "'refine.branch.bias' is"),
        (BeyondHalf, losses.loss_trains_with_scaled_branches, "'refine.branch.weight' is nan times the plain"),
        (PastItsArguments, losses.loss_trains_with_scaled_branches, "'table.weight' is"),
        (Tied, modules.parameters_belong_to_one_module, "are one parameter"),
        (SetByItsParent, modules.parameters_are_set_where_they_are_made, "'layer.weight' is made or set after"),
        (MadeByItsParent, modules.parameters_are_set_where_they_are_made, "'layer.gain' is made or set after"),
        (Copied, modules.parameters_are_set_where_they_are_made, "'layer.weight' is made or set after"),
        (HiddenState, modules.state_survives_saving, "some state is lost"),
        (MaskIsZero, priors.masked_codes_are_hidden, "read as code 0"),
    ],
)  # fmt: skip
def test_each_fault_of_a_prior_is_caught(cls: Callable[..., Any], check: Callable[[Case], None], text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        check(case("prior", cls))


def test_guidance_that_is_not_refused_is_caught() -> None:
    with pytest.raises(AssertionError, match="guidance"):
        priors.guidance_needs_a_null(case("prior", Loose, Config(cond_drop=0.0)))


def test_settings_that_are_not_refused_are_caught() -> None:
    with pytest.raises(AssertionError, match=r"temperature=-1\.0 is not refused"):
        priors.settings_out_of_range_are_refused(case("prior", Loose))


def test_each_fault_of_a_codebook_is_caught() -> None:
    for check in codebooks.CHECKS:
        check(case("codebook", Book))
    for cls, check, text in (
        (TooBright, codebooks.decoding_gives_pictures, "not within"),
        (Flipped, codebooks.decoding_gives_pictures, "depends on the codes beside it"),
        (OneTooMany, codebooks.codes_are_in_range, "codes leave"),
        (ThirtyTwo, codebooks.codes_are_in_range, "not int64"),
        (OtherGrid, codebooks.facts_are_true, "facts say grids"),
        (Normalised, codebooks.encoding_ignores_neighbours, "pictures beside it"),
    ):
        with pytest.raises(AssertionError, match=text):
            check(case("codebook", cls))


def test_each_fault_of_a_tokenizer_is_caught() -> None:
    for check in tokenizers.CHECKS:
        check(case("tokenizer", Letters, Config(vocab_size=128, length=64)))
    for cls, config, check, text in (
        (Letters, Config(), tokenizers.facts_are_true, "facts say"),
        (LeftPadded, Config(), tokenizers.ids_are_in_range, "a token follows padding"),
        (Shouting, Config(), tokenizers.captions_come_back, "comes back as"),
    ):
        with pytest.raises(AssertionError, match=text):
            check(case("tokenizer", cls, config))


def test_each_fault_of_a_denoiser_is_caught() -> None:
    config = Config(reads="text")
    for check in denoisers.CHECKS:
        check(case("denoiser", Denoiser, config))
    with pytest.raises(AssertionError, match="depends on the rows beside it"):
        denoisers.predictions_have_their_shape(case("denoiser", BatchNorm, config))


def test_a_part_that_its_stage_does_not_move_is_caught() -> None:
    from zoo.construct import construct
    from zoo.resolution import resolve_tree

    node, config = resolve_tree("imagen-tiny")

    def detached(seed: int) -> Any:
        system = construct(node, config, device="cpu", seed=seed)
        encode = system.text_encoder.encode
        system.text_encoder.encode = lambda ids, mask: encode(ids, mask).detach()
        return system

    with pytest.raises(AssertionError, match=r"stage 'base' says it trains \['text_encoder'\], and gives no gradient"):
        generators.stages_train(Case("x", "generator", config, detached))


def test_missing_members_are_named() -> None:
    with pytest.raises(AssertionError, match="a latent needs bounded, channels, decode, encode, size"):
        modules.has_its_interface(case("latent", lambda config: nn.Linear(1, 1)))


def test_labels_name_plugin_card_and_check() -> None:
    labels = [label for label, _ in cases("zoo_text")]
    assert "imports_no_torch" in labels
    assert "bpe-tiny-captions_come_back" in labels
    assert len(labels) == len(set(labels))
    with pytest.raises(NotInstalled, match="plugin 'acme_nobody' is not installed"):
        conformance("acme_nobody")


def test_large_cards_are_counted_and_not_built() -> None:
    labels = [label for label, _ in cases("zoo_dvae") if label.startswith("dvae-8192-")]
    assert "dvae-8192-card_counts_the_parameters" in labels
    assert "dvae-8192-codes_are_in_range" not in labels


def test_helpers() -> None:
    with pytest.raises(AssertionError, match="why"):
        need(False, "why")
    close(torch.ones(2), torch.ones(2) + 1e-6, "x")
    with pytest.raises(AssertionError, match="shapes"):
        close(torch.ones(2), torch.ones(3), "x")
    with pytest.raises(AssertionError, match="differ by"):
        close(torch.ones(2), torch.full((2,), float("nan")), "x")
    with pytest.raises(AssertionError, match="NumPy's global"), global_random_state_kept("f"):
        __import__("numpy").random.rand()
    with pytest.raises(AssertionError, match="Python's global"), global_random_state_kept("f"):
        __import__("random").random()
    data = Pictures(8)
    assert len(set(data.texts())) > 20
    assert torch.equal(data.read([3, 1]).images, data.read([1, 3]).images.flip(0))

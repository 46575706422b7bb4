"""Any prior runs on any codebook: the smallest of each family, all with all."""

import pytest

import zoo
from zoo.catalogue import Card
from zoo.construct import construct
from zoo.resolution import resolve_tree
from zoo.testing.generators import pictures_follow_the_seed, stages_train
from zoo.testing.kit import Case


def tiny(kind: str) -> list[Card]:
    return [card for card in zoo.list_models() if card.kind == kind and card.name.endswith("-tiny")]


@pytest.mark.parametrize("prior", tiny("prior"), ids=lambda card: card.name)
@pytest.mark.parametrize("codebook", tiny("codebook"), ids=lambda card: card.name)
def test_a_pair_trains_and_samples(codebook: Card, prior: Card) -> None:
    overrides = [f"codebook={codebook.name}", f"prior={prior.name}", "reranker=none", "image_size=16"]
    node, config = resolve_tree("dalle-tiny", overrides, classes=3)
    assert config.prior.vocab_size == config.codebook.facts(16).vocab_size
    case = Case(f"{codebook.name}+{prior.name}", "generator", config, lambda seed: construct(node, config, seed=seed))
    stages_train(case)
    pictures_follow_the_seed(case)


@pytest.mark.parametrize("reads", ["label", "nothing"])
@pytest.mark.parametrize("prior", tiny("prior"), ids=lambda card: card.name)
def test_a_prior_reads_labels_or_nothing(prior: Card, reads: str) -> None:
    overrides = [f"prior={prior.name}", f"prior.reads={reads}", "tokenizer=none", "reranker=none", "image_size=16"]
    node, config = resolve_tree("dalle-tiny", overrides, classes=3)
    case = Case(f"{prior.name}-{reads}", "generator", config, lambda seed: construct(node, config, seed=seed))
    stages_train(case)
    pictures_follow_the_seed(case)


@pytest.mark.parametrize("reads", ["text", "label", "nothing"])
@pytest.mark.parametrize(("latent", "above"), [("pixels", "sr32"), ("vae", "sr64")])
@pytest.mark.parametrize("denoiser", tiny("denoiser"), ids=lambda card: card.name)
def test_any_denoiser_is_a_stage_in_any_latent(denoiser: Card, latent: str, above: str, reads: str) -> None:
    size = int(above.removeprefix("sr"))
    overrides = [
        "sr32=none", f"base={denoiser.name}", f"{above}={denoiser.name}", f"latent={latent}",
        f"base_size={size // 2}", f"image_size={size}", f"base.reads={reads}", f"{above}.reads={reads}",
    ]  # fmt: skip
    node, config = resolve_tree("imagen-tiny", overrides, classes=3)
    assert config.base.channels == config.latent.facts(size).channels
    case = Case(f"{denoiser.name}-{reads}", "generator", config, lambda seed: construct(node, config, seed=seed))
    stages_train(case)
    pictures_follow_the_seed(case)

"""The conformance kit catches what it is for: each broken part here fails the check that names its fault."""

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from zoo.errors import NotInstalled
from zoo.interfaces import Batch, Cond, Prediction
from zoo.nn.sampling import check_guidance, check_prefix, check_sampling, draw
from zoo.parts import Facts, Grid
from zoo.rng import Rng
from zoo.testing import behaviours, cases, codebooks, conformance, denoisers, losses, modules, priors, tokenizers
from zoo.testing.kit import Case, Pictures, close, global_random_state_kept, need


@attrs.frozen(kw_only=True)
class Config:
    vocab_size: int = 6
    grids: tuple[Grid, ...] = ((2, 2),)
    image_size: int = 8
    reads: str = "ids"
    text_vocab: int = 9
    text_length: int = 4
    text_width: int = 5
    channels: int = 2
    size: Grid = (4, 4)
    cond_drop: float = 0.5
    length: int = 4

    def facts(self, image_size: int) -> Facts:
        return Facts(vocab_size=self.vocab_size, grids=self.grids, length=self.length)


class System(nn.Module):
    def __init__(self, interface: str, part: Any) -> None:
        super().__init__()
        self.parts = {interface: part}
        self.part = part

    def mark_ready(self, role: str) -> None:
        pass


def case(interface: str, cls: Callable[..., Any], config: Config | None = None) -> Case:
    config = config or Config()

    def make(seed: int) -> System:
        torch.manual_seed(seed)
        part = cls(config)
        part.card, part.plugin, part.version, part.config = "x", "x", "1", config
        return System(interface, part)

    return Case("broken", interface, config, make)


class Bigram(nn.Module):
    """A right prior: each code sees the one before it and the caption."""

    causal = True

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.vocab_size, self.grids = config, config.vocab_size, config.grids
        self.length = sum(h * w for h, w in config.grids)
        self.table = nn.Embedding(config.vocab_size + 1, config.vocab_size)
        self.words = nn.Embedding(config.text_vocab, config.vocab_size)

    def caption(self, cond: Cond) -> Tensor:
        assert cond.ids is not None
        assert cond.mask is not None
        seen = cond.mask if cond.drop is None else cond.mask & ~cond.drop[:, None]
        return (self.words(cond.ids) * seen[..., None]).sum(1)

    def before(self, codes: Tensor) -> Tensor:
        start = torch.full_like(codes[:, :1], self.vocab_size)
        return torch.cat([start, codes[:, :-1]], 1)

    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        return self.table(self.before(codes)) + self.caption(cond)[:, None]

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> dict[str, Tensor]:
        drop = rng.fork("cond_drop").uniform() < self.config.cond_drop
        logits = self.logits(batch.codes, attrs.evolve(cond, drop=drop))
        return {"loss": nn.functional.cross_entropy(logits.float().transpose(1, 2), batch.codes)}

    @torch.no_grad()
    def sample(
        self,
        cond: Cond,
        *,
        batch: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        rng: Rng,
        prefix: Tensor | None = None,
    ) -> Tensor:
        check_sampling(temperature, top_k, top_p)
        check_guidance(guidance, self.config.cond_drop)
        given = torch.full((batch, self.length), -1) if prefix is None else prefix
        check_prefix(given, batch, self.length, self.vocab_size)
        codes, u = given.clamp(min=0), rng.uniform(self.length)
        null = attrs.evolve(cond, drop=torch.ones(batch, dtype=torch.bool))
        for i in range(self.length):
            full, bare = self.logits(codes, cond)[:, i], self.logits(codes, null)[:, i]
            drawn = draw(bare + guidance * (full - bare), u[:, i], temperature, top_k, top_p)
            codes[:, i] = torch.where(given[:, i] >= 0, given[:, i], drawn)
        return codes  # fmt: skip


class Leaky(Bigram):
    def before(self, codes: Tensor) -> Tensor:
        return codes


class Mixing(Bigram):
    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        return super().logits(codes, cond) + self.caption(cond).mean(0)


class Undroppable(Bigram):
    def caption(self, cond: Cond) -> Tensor:
        return super().caption(attrs.evolve(cond, drop=None))


class SeesPadding(Bigram):
    def caption(self, cond: Cond) -> Tensor:
        return super().caption(attrs.evolve(cond, mask=torch.ones_like(cond.mask)))


class GlobalNoise(Bigram):
    def loss(self, batch: Batch, cond: Cond, **more: Any) -> dict[str, Tensor]:
        return {"loss": super().loss(batch, cond, **more)["loss"] + torch.rand(())}

    def sample(self, cond: Cond, *, batch: int, **more: Any) -> Tensor:
        torch.rand(())
        return super().sample(cond, batch=batch, **more)


class WrongCache(Bigram):
    def sample(self, cond: Cond, **more: Any) -> Tensor:
        right = self.table.weight.data
        self.table.weight.data = right.roll(1, 0)
        try:
            return super().sample(cond, **more)
        finally:
            self.table.weight.data = right


class ForgetsPrefix(Bigram):
    def sample(self, cond: Cond, *, prefix: Tensor | None = None, **more: Any) -> Tensor:
        if prefix is not None:
            check_prefix(prefix, len(prefix), self.length, self.vocab_size)
        return super().sample(cond, **more)


class TakesAnyPrefix(Bigram):
    def sample(self, cond: Cond, *, prefix: Tensor | None = None, **more: Any) -> Tensor:
        drawn = super().sample(cond, **more)
        return drawn if prefix is None else torch.where(prefix >= 0, prefix, drawn)


class NeighbourSeed(Bigram):
    def sample(self, cond: Cond, *, rng: Rng, batch: int, **more: Any) -> Tensor:
        return super().sample(cond, rng=rng.fork(str(batch)), batch=batch, **more)


class Summed(Bigram):
    def loss(self, batch: Batch, cond: Cond, **more: Any) -> dict[str, Tensor]:
        return {"loss": super().loss(batch, cond, **more)["loss"] * len(batch)}


class NoGradient(Bigram):
    def loss(self, batch: Batch, cond: Cond, **more: Any) -> dict[str, Tensor]:
        loss = super().loss(batch, cond, **more)["loss"].detach()
        return {"loss": loss.requires_grad_() + 0 * self.table.weight.sum()}


class NotFinite(Bigram):
    def loss(self, batch: Batch, cond: Cond, **more: Any) -> dict[str, Tensor]:
        return {"loss": super().loss(batch, cond, **more)["loss"] / 0}


class Attached(Bigram):
    def loss(self, batch: Batch, cond: Cond, **more: Any) -> dict[str, Tensor]:
        losses = super().loss(batch, cond, **more)
        return {**losses, "also": losses["loss"] * 2}


class Half(Bigram):
    def loss(self, batch: Batch, cond: Cond, **more: Any) -> dict[str, Tensor]:
        return {"loss": super().loss(batch, cond, **more)["loss"].to(torch.bfloat16)}


class Tied(Bigram):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.other = nn.Embedding(config.vocab_size + 1, config.vocab_size)
        self.other.weight = self.table.weight


class HiddenState(Bigram):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.bias = torch.randn(config.vocab_size)

    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        return super().logits(codes, cond) + self.bias


class Unguarded(Bigram):
    def __init__(self, config: Config) -> None:
        super().__init__(attrs.evolve(config, cond_drop=0.5))


class MaskIsZero(Bigram):
    causal = False

    def before(self, codes: Tensor) -> Tensor:
        return codes.flip(1).clamp(min=0)


def test_a_right_part_passes_every_check() -> None:
    for check in behaviours("prior"):
        check(case("prior", Bigram))
        check(case("prior", Bigram, Config(cond_drop=0.0)))


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
        (Tied, modules.parameters_belong_to_one_module, "are one parameter"),
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


class Loose(Bigram):
    def sample(self, cond: Cond, *, guidance: float = 1.0, temperature: float = 1.0, **more: Any) -> Tensor:
        return super().sample(cond, temperature=abs(temperature), **more)


def test_settings_that_are_not_refused_are_caught() -> None:
    with pytest.raises(AssertionError, match=r"temperature=-1\.0 is not refused"):
        priors.settings_out_of_range_are_refused(case("prior", Loose))


class Book(nn.Module):
    """A right codebook: the nearest of K greys in each quarter."""

    scale = 1.0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.vocab_size = config.vocab_size

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        return ((2, 2),)

    def encode(self, images: Tensor) -> Tensor:
        cells = nn.functional.adaptive_avg_pool2d(images.mean(1), 2).flatten(1)
        return (cells * (self.vocab_size - 1)).round().long()

    def decode(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        cells = codes.view(-1, 1, 2, 2).float() / (self.vocab_size - 1) * self.scale
        return cells.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)


class TooBright(Book):
    scale = 1.1


class OneTooMany(Book):
    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images) + self.vocab_size


class ThirtyTwo(Book):
    def encode(self, images: Tensor) -> Tensor:
        return super().encode(images).int()


class Flipped(Book):
    def decode(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        return super().decode(codes.flip(0), grids)


class OtherGrid(Book):
    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        return ((1, 4),)


class Normalised(Book):
    def encode(self, images: Tensor) -> Tensor:
        return super().encode((images - images.amin()) / (images.amax() - images.amin()))


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


class Letters(nn.Module):
    """A tokenizer of letters that is never fitted; right but for its vocabulary."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.vocab_size, self.length = 128, 64

    def encode(self, texts: list[str], rng: Rng | None = None) -> tuple[Tensor, Tensor]:
        ids = torch.zeros(len(texts), 64, dtype=torch.int64)
        for i, text in enumerate(texts):
            ids[i, : len(text[:64])] = torch.tensor([min(ord(c), 127) for c in text[:64]], dtype=torch.int64)
        lengths = torch.tensor([min(len(text), 64) for text in texts])
        return ids, torch.arange(64) < lengths[:, None]

    def decode(self, ids: Tensor) -> list[str]:
        return ["".join(chr(i) for i in row if i) for row in ids.tolist()]


class LeftPadded(Letters):
    def encode(self, texts: list[str], rng: Rng | None = None) -> tuple[Tensor, Tensor]:
        ids, mask = super().encode(texts)
        return ids.flip(1), mask.flip(1)


class Shouting(Letters):
    def decode(self, ids: Tensor) -> list[str]:
        return [text.upper() for text in super().decode(ids)]


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


class Denoiser(nn.Module):
    prediction, schedule, bounded = "v", None, True
    mixing = 0.0

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.layer = nn.Linear(config.text_width, 1)

    def predict(self, z: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        text = self.layer(cond.text).sum((1, 2))
        if cond.drop is not None:
            text = torch.where(cond.drop, 0.0, text)
        return Prediction(z * logsnr[:, None, None, None] + text[:, None, None, None] + self.mixing * z.sum())


class BatchNorm(Denoiser):
    mixing = 1.0


def test_each_fault_of_a_denoiser_is_caught() -> None:
    config = Config(reads="text")
    for check in denoisers.CHECKS:
        check(case("denoiser", Denoiser, config))
    with pytest.raises(AssertionError, match="depends on the rows beside it"):
        denoisers.predictions_have_their_shape(case("denoiser", BatchNorm, config))


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

"""Right parts of each kind, and the same with one fault each, for the conformance kit to find."""

import copy
from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from zoo.interfaces import Batch, Cond, Prediction
from zoo.nn.residual import Residual
from zoo.nn.sampling import check_guidance, check_prefix, check_sampling, draw
from zoo.parts import Facts, Grid
from zoo.rng import Rng
from zoo.testing.kit import Case


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


class SetByItsParent(Bigram):
    """Zeroes a layer that has been made."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layer = nn.Linear(2, 2)
        nn.init.zeros_(self.layer.weight)


class MadeByItsParent(Bigram):
    """Gives a layer that has been made one parameter more."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layer = nn.Linear(2, 2)
        self.layer.gain = nn.Parameter(torch.ones(2))


class Copied(Bigram):
    """Has a copy of a layer, which no constructor made."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.layer = copy.deepcopy(nn.Linear(2, 2))


class HiddenState(Bigram):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.bias = torch.randn(config.vocab_size)

    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        return super().logits(codes, cond) + self.bias


class Unguarded(Bigram):
    def __init__(self, config: Config) -> None:
        super().__init__(attrs.evolve(config, cond_drop=0.5))


class Refined(Bigram):
    """A right prior with a residual branch."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.refine = Residual(nn.Linear(config.vocab_size, config.vocab_size))

    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        return self.refine(super().logits(codes, cond))


class UsedOutside(Refined):
    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        return super().logits(codes, cond) + self.refine.branch.bias


class PastItsArguments(Refined):
    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        self.refine.branch.register_forward_pre_hook(lambda _, given: (given[0] + self.table.weight.sum(0),))
        return super().logits(codes, cond)


class BeyondHalf(Refined):
    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.refine.branch.register_forward_hook(lambda _, given, y: y * 1e-9 * 1e9)


class MaskIsZero(Bigram):
    causal = False

    def before(self, codes: Tensor) -> Tensor:
        return codes.flip(1).clamp(min=0)


class Loose(Bigram):
    def sample(self, cond: Cond, *, guidance: float = 1.0, temperature: float = 1.0, **more: Any) -> Tensor:
        return super().sample(cond, temperature=abs(temperature), **more)


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

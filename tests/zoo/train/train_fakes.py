"""A small system with everything a stage can have: a frozen codebook, a trained prior, noise, a buffer."""

from __future__ import annotations

import hashlib

import attrs
import torch
from torch import nn

from zoo.interfaces import Batch, Cond
from zoo.nn import Residual
from zoo.nn.precision import wide
from zoo.parts import Recipe
from zoo.rng import Rng
from zoo.train.checkpoint import Checkpoints
from zoo.train.engine import TorchEngine
from zoo.train.feed import Feed
from zoo.train.loop import Job
from zoo.train.options import TrainOptions
from zoo.train.stage import Stage

CODES, WIDTH = 32, 12


@attrs.frozen(kw_only=True)
class FakeConfig:
    train: Recipe = attrs.field(factory=Recipe)


class FakeCodebook(nn.Module):
    """One code a quadrant: its mean brightness."""

    vocab_size = CODES

    def __init__(self):
        super().__init__()
        self.config = FakeConfig()
        self.shift = nn.Parameter(torch.zeros(1))
        self.calls = 0

    def encode(self, images):
        self.calls += 1
        means = nn.functional.adaptive_avg_pool2d(images.mean(1, keepdim=True), 2).flatten(1)
        return ((means + self.shift) * CODES).long().clamp(0, CODES - 1)


class FakePrior(nn.Module):
    """Guesses each code from the one before it; its loss draws noise, its forward keeps a running mean."""

    def __init__(self, recipe=None):
        super().__init__()
        self.config = FakeConfig(train=recipe or Recipe())
        self.embed = nn.Embedding(CODES, WIDTH)
        self.block = Residual(nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh()))
        self.head = nn.Linear(WIDTH, CODES)
        self.unused = nn.Parameter(torch.ones(3))
        self.register_buffer("seen", torch.zeros(()))
        self.poison = None

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng):
        x = self.embed(batch.codes[:, :-1])
        x = x + 0.1 * rng.normal(*x.shape[1:])
        logits = wide(self.head(self.block(x)))
        each = nn.functional.cross_entropy(logits.transpose(1, 2), batch.codes[:, 1:], reduction="none").mean(1)
        loss = each.mean()
        if self.poison is not None and self.poison(step):
            loss = loss * float("nan")
        if self.training:
            self.seen.lerp_(loss.detach().to(self.seen.dtype), 0.1)
        return {"loss": loss, "first": each[0].detach()}


class FakeSystem:
    def __init__(self, recipe=None, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.parts = {"codebook": FakeCodebook(), "prior": FakePrior(recipe)}
        self.stages = {"prior": ("prior",)}

    def reads(self, part):
        return ("codebook",)

    def encode(self, part, batch, *, rng=None):
        if batch.codes is not None:
            return batch
        with torch.no_grad():
            return attrs.evolve(batch, codes=self.parts["codebook"].encode(batch.images))

    def loss(self, part, batch, *, step, rng):
        return self.parts["prior"].loss(batch, Cond(), step=step, rng=rng)

    def eval(self):
        for part in self.parts.values():
            part.eval()


class FakeData:
    uri, split, classes, stochastic = "fake", "train", None, False

    def __init__(self, length=50, size=8):
        self.length, self.size = length, size
        self.reads = 0

    @property
    def fingerprint(self):
        return hashlib.sha256(f"{self.length} {self.size} {self.stochastic}".encode()).hexdigest()

    def __len__(self):
        return self.length

    def read(self, rows, rng=None):
        self.reads += 1
        images = Rng(7, list(rows)).uniform(3, self.size, self.size)
        images = images * Rng(8, list(rows)).uniform(1, 1, 1)  # pictures of different brightness
        return Batch(images=images, texts=tuple(f"row {i}" for i in rows), labels=torch.tensor(list(rows)))

    def texts(self):
        return (f"row {i}" for i in range(self.length))


def options(**changes):
    return TrainOptions(model="fake", **changes)


def engine(**changes):
    return TorchEngine(options(**changes), device="cpu")


def job(folder, recipe, *, data=None, save_every=5, keep=2, seed=3, system=None, **changes):
    """A prepared job on the fake system, as the trainer makes it."""
    system = system or FakeSystem(recipe)
    data = data or FakeData()
    made = engine()
    stage = Stage(system, "prior")
    made.prepare(stage, recipe, steps=recipe.steps)
    folder.mkdir(parents=True, exist_ok=True)
    return Job(
        folder=folder,
        generator=system,
        stage=stage,
        engine=made,
        recipe=recipe,
        feed=Feed(read=data.read, length=len(data), batch=recipe.batch, seed=seed, world=made.world, ahead=2),
        seed=seed,
        shown=data,
        checkpoints=Checkpoints(folder / "checkpoints" / "prior", keep),
        facts={"seed": seed},
        save_every=save_every,
        sample_every=0,
        **changes,
    )

"""A small system whose prior tells features: a layer that knows nothing, one that knows the class, and a learnt one."""

from __future__ import annotations

import types
from pathlib import Path

import attrs
import numpy as np
import torch
from torch import nn

from zoo.interfaces import Batch, Cond
from zoo.parts import Recipe
from zoo.probing.features import Subject
from zoo.probing.splits import Part, Splits
from zoo.rng import Rng

CODES, LENGTH, WIDTH, CLASSES = 8, 16, 12, 4


@attrs.frozen(kw_only=True)
class FakeConfig:
    mask: float = 0.25
    train: Recipe = Recipe(optimizer="adam", lr=0.1, batch=16, clip=None)


class FakeCodebook(nn.Module):
    """A code a pixel: its brightness."""

    vocab_size = CODES

    def encode(self, images):
        return (images.mean(1).flatten(1) * CODES).long().clamp(0, CODES - 1)


class FakePrior(nn.Module):
    """Layer 0: a constant and noise of the picture; layer 1: shares of codes; layer 2: a learnt map of these."""

    card, plugin, version = "fake-prior", "fake", "1"

    def __init__(self, causal=True, config=None):
        super().__init__()
        self.causal, self.length, self.config = causal, LENGTH, config or FakeConfig()
        self.seen = []
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.map = nn.Linear(CODES, WIDTH)
            self.guess = nn.Parameter(torch.zeros(CODES))

    def features(self, codes, cond):
        self.seen.append(codes)
        known = (codes >= 0).float().unsqueeze(-1)
        shares = (nn.functional.one_hot(codes.clamp_min(0), CODES) * known).mean(1)
        shares = nn.functional.pad(shares, (0, WIDTH - CODES))
        noise = Rng(1, (codes * torch.arange(1, LENGTH + 1) ** 3).sum(1)).normal(WIDTH)
        return [noise, shares, self.map(shares[:, :CODES])]

    def loss(self, batch: Batch, cond: Cond, *, step, rng):
        return {"loss": nn.functional.cross_entropy(self.guess.expand(batch.codes.numel(), -1), batch.codes.flatten())}


class FakeSystem:
    card, reads_what, device = "fake", "nothing", torch.device("cpu")

    def __init__(self, causal=True, config=None):
        self.codebook, self.prior = FakeCodebook(), FakePrior(causal, config)
        self.parts = {"codebook": self.codebook, "prior": self.prior}
        self.config = types.SimpleNamespace(image_size=4)

    def reads(self, part):
        return ("codebook",)

    def encode(self, part, batch, *, rng=None):
        return attrs.evolve(batch, codes=self.codebook.encode(batch.images))

    def loss(self, part, batch, *, step, rng):
        return self.prior.loss(batch, Cond(), step=step, rng=rng)


class FakeData:
    """Pictures of 4 x 4 pixels whose brightness is the class; with `noise` it is so for some of them only."""

    uri, split, stochastic = "fake:data", "train", False
    classes = ("dark", "dim", "grey", "bright")

    def __init__(self, length, seed, noise=0.0, random_labels=False):
        self.length, self.seed, self.noise, self.random_labels = length, seed, noise, random_labels
        self.fingerprint = f"{length} {seed} {noise} {random_labels}"

    def __len__(self):
        return self.length

    def read(self, rows, rng=None):
        u = Rng(self.seed, list(rows)).fork("data").uniform(LENGTH + 3)
        true = (u[:, 0] * CLASSES).long()
        shown = torch.where(u[:, 1] < self.noise, (u[:, 2] * CLASSES).long(), true)
        images = ((shown[:, None] + 0.2 + 0.6 * u[:, 3:]) / CLASSES).view(-1, 1, 4, 4).expand(-1, 3, -1, -1)
        labels = (Rng(99, list(rows)).uniform() * CLASSES).long() if self.random_labels else true
        return Batch(images=images, labels=labels)


def subject(path: Path, causal=True, config=None) -> Subject:
    return Subject(path, FakeSystem(causal, config), "prints")


def splits(train=300, other=200, **how) -> Splits:
    parts = [Part(FakeData(n, seed, **how), np.arange(n)) for seed, n in enumerate((train, other, other))]
    return Splits(*parts, FakeData.classes, "heldout")


class Bar:
    """A progress bar that shows nothing and counts."""

    def __init__(self, total, what, unit):
        self.total, self.n = total, 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        assert error[0] is not None or self.n == self.total

    def update(self, done):
        self.n += done

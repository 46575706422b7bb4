"""Configs of VQGAN's autoencoder and their variants. Imports no torch.

[1] P. Esser, R. Rombach, B. Ommer: Taming transformers for high-resolution image synthesis. arXiv:2012.09841.
[2] The authors' code and published configs: github.com/CompVis/taming-transformers.
[3] The authors on training, in issues 31 and 61 of [2].
"""

import math
from typing import Any, Literal

import attrs
from attrs import evolve
from attrs import validators as v

from zoo.cost import Cost
from zoo.errors import ConfigError
from zoo.parts import Facts, Grid, Recipe
from zoo_vqgan import cost

_share: Any = v.and_(v.ge(0.0), v.lt(1.0))  # Any: attrs' types take the default's type for the field's


@attrs.frozen(kw_only=True)
class Net:
    """Encoder and decoder: levels of residual blocks, the picture halved between two. [1] table 7"""

    channels: int = attrs.field(default=128, validator=v.ge(1))
    """Channels at full resolution; `ch` in [2]."""
    multipliers: tuple[int, ...] = attrs.field(default=(1, 1, 2, 2, 4))
    """Channels of each level, in multiples of `channels`. One level more than halvings: five make a 16x smaller grid;
    `ch_mult` in [2]."""
    blocks: int = attrs.field(default=2, validator=v.ge(1))
    """Residual blocks of an encoder's level; the decoder's have one more. [2]"""
    attention: tuple[int, ...] = attrs.field(default=(16,))
    """Reductions at which attention follows every block. [2] names sides of the picture instead: 16 of 256 px is a
    reduction by 16. In the middle of encoder and decoder there is always attention."""
    groups: int = attrs.field(default=32, validator=v.ge(1))
    """Groups of a group norm, fixed at 32 in [2]."""
    z_channels: int = attrs.field(default=256, validator=v.ge(1))
    """Channels that enter the decoder, and leave the encoder (of a `Kl` twice as many: mean and variance). [2]"""

    @multipliers.validator
    def _levels(self, attribute: Any, value: tuple[int, ...]) -> None:
        if not value or min(value) < 1:
            raise ValueError(f"'multipliers' must be a non-empty tuple of integers of at least 1: {value}")

    @attention.validator
    def _at_a_level(self, attribute: Any, value: tuple[int, ...]) -> None:
        known = [2**i for i in range(len(self.multipliers))]
        if not set(value) <= set(known):
            raise ValueError(f"'attention' must name reductions of {len(known)} levels, {known}: {value}")

    @groups.validator
    def _divide(self, attribute: Any, value: int) -> None:
        if bad := [w for w in (self.channels, *self.widths) if w % value]:
            raise ValueError(f"'groups' must divide the channels of every level ({bad[0]}): {value}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, full resolution first."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def factor(self) -> int:
        """Pixels per place of the grid, along one side."""
        return 2 ** (len(self.multipliers) - 1)

    def grid(self, height: int, width: int) -> Grid:
        """Return the grid of a picture of this size.

        Raises:
            ConfigError: a side is not a positive multiple of `factor`.
        """
        if min(height, width) < 1 or height % self.factor or width % self.factor:
            raise ConfigError(
                f"image_size: a {height}x{width} picture has no whole grid; "
                f"this autoencoder needs sides that are multiples of {self.factor}"
            )
        return height // self.factor, width // self.factor


@attrs.frozen(kw_only=True)
class Nearest:
    """The nearest of K vectors, with the gradient passed straight through. [1] section 3.1"""

    codebook_weight: float = attrs.field(default=0.25, validator=v.gt(0))
    """Weight of |sg[z] - e|², which moves the codes."""
    commitment_weight: float = attrs.field(default=1.0, validator=v.ge(0))
    """Weight of |z - sg[e]|², which moves the encoder. [1] eq. (4) has 1 and 0.25; [2] has them the other way round,
    says so, and keeps it, since the published weights were trained so."""
    revive_below: float = attrs.field(default=0.0, validator=_share)
    """A code chosen less often than this share of the mean is moved to a vector of the batch; 0: never, as in [2]."""


@attrs.frozen(kw_only=True)
class Gumbel:
    """One of K vectors, drawn by Gumbel-softmax, hard forward and soft backward. [2]"""

    kl_weight: float = attrs.field(default=1e-8, validator=v.ge(0))
    """Weight of the KL from the posterior to the uniform prior, in nats per position. [2]"""
    temperature_start: float = attrs.field(default=0.9, validator=v.gt(0))
    """Temperature of the first update. [2]"""
    temperature_end: float = attrs.field(default=1e-6, validator=v.gt(0))
    """Temperature after `temperature_updates`. [2]"""
    temperature_updates: int = attrs.field(default=1_000_001, validator=v.ge(0))
    """Updates of the temperature's cosine. [2]"""

    def temperature_at(self, step: int) -> float:
        """Return the temperature at an update."""
        if step >= self.temperature_updates:
            return self.temperature_end
        fall = 0.5 * (1 + math.cos(math.pi * step / self.temperature_updates))
        return self.temperature_end + (self.temperature_start - self.temperature_end) * fall


@attrs.frozen(kw_only=True)
class Vqgan:
    """VQGAN without its adversary: encoder, quantiser, decoder."""

    net: Net = attrs.field(factory=Net)
    """Encoder and decoder."""
    vocab_size: int = attrs.field(default=1024, validator=v.ge(2))
    """Codes, K; `n_embed` in [2]."""
    width: int = attrs.field(default=256, validator=v.ge(1))
    """Entries of a code; `embed_dim` in [2]."""
    quantiser: Literal["nearest", "gumbel"] = "nearest"
    """How a vector becomes a code; the two have different parameters."""
    nearest: Nearest = attrs.field(factory=Nearest)
    """Settings of the nearest code."""
    gumbel: Gumbel = attrs.field(factory=Gumbel)
    """Settings of Gumbel-softmax."""
    image_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Side of the square picture, in pixels; None: left to the system."""
    train: Recipe = attrs.field(factory=Recipe)
    """How it is trained."""

    @image_size.validator
    def _whole_grid(self, attribute: Any, value: int | None) -> None:
        if value is not None and value % self.net.factor:
            raise ValueError(f"'image_size' must be a multiple of {self.net.factor} (2^(levels-1)): {value}")

    def facts(self, image_size: int) -> Facts:
        """Return the vocabulary and the code grid of a square picture."""
        return Facts(vocab_size=self.vocab_size, grids=(self.net.grid(image_size, image_size),))

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.cost(self)


def vqgan_f16_1024() -> Vqgan:
    """Return the authors' ImageNet model: 256 px, 16x16 codes of 1024, 72 141 699 parameters. [2]

    Batch 12 and a learning rate of 4.5e-6 a sample are the published config's. It names no number of updates; the
    authors advise six to ten epochs of ImageNet [3], about a million updates.
    """
    recipe = Recipe(
        optimizer="adam",
        lr=5.4e-5,
        betas=(0.5, 0.9),
        schedule="constant",
        clip=None,
        batch=12,
        steps=1_000_000,
        transform="crop",
    )
    return Vqgan(image_size=256, train=recipe)


def vqgan_f16_16384() -> Vqgan:
    """Return the same with 16384 codes: 76 073 859 parameters. [2]"""
    return evolve(vqgan_f16_1024(), vocab_size=16384)


def vqgan_gumbel_f8_8192() -> Vqgan:
    """Return the authors' Gumbel model, OpenImages: 256 px, 32x32 codes of 8192, 68 995 971 parameters. [2]

    ruDALL-E's `vqgan.gumbelf8-sber` is this model with other weights.
    """
    net = Net(multipliers=(1, 1, 2, 4), attention=(8,))
    return evolve(vqgan_f16_1024(), net=net, vocab_size=8192, quantiser="gumbel")


def vqgan() -> Vqgan:
    """Return the laptop-size VQGAN: 32 px, 8x8 codes of 512."""
    return Vqgan(
        net=Net(channels=16, multipliers=(1, 2, 2), blocks=1, attention=(4,), groups=8, z_channels=32),
        vocab_size=512,
        width=32,
        nearest=Nearest(codebook_weight=1.0, commitment_weight=0.25, revive_below=0.03),
        gumbel=Gumbel(kl_weight=1e-3, temperature_start=2.0, temperature_end=0.5, temperature_updates=600),
        image_size=32,
        train=Recipe(optimizer="adam", lr=2e-3, betas=(0.9, 0.99), warmup=50, batch=32, steps=1000),
    )


def vqgan_tiny() -> Vqgan:
    """Return a VQGAN for tests: 16 px, 4x4 codes."""
    base = vqgan()
    return evolve(
        base,
        net=Net(channels=8, multipliers=(1, 2, 2), blocks=1, attention=(4,), groups=4, z_channels=8),
        vocab_size=32,
        width=8,
        image_size=16,
        train=evolve(base.train, batch=8, steps=60, warmup=5),
    )

"""Configurations of the discrete VAE. Imports no torch.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, section 2.1 and appendix A
[2] The authors' encoder and decoder, github.com/openai/DALL-E
"""

from typing import Any

import attrs
from attrs import validators as v

from zoo.cost import Cost
from zoo.errors import ConfigError
from zoo.parts import Facts, Grid, Recipe
from zoo_dvae import cost
from zoo_dvae.schedules import cosine


@attrs.frozen(kw_only=True)
class Dvae:
    """Encoder, decoder and training objective of a discrete VAE."""

    n_hid: int = attrs.field(default=256, validator=v.ge(1))
    """Channels of the first encoder group and the last decoder group; each deeper group doubles them [2]."""
    groups: int = attrs.field(default=4, validator=v.ge(1))
    """Groups of residual blocks. The picture is halved between two groups: 4 groups make an 8x smaller grid [2]."""
    blocks: int = attrs.field(default=2, validator=v.ge(1))
    """Residual blocks in a group [2]."""
    bottleneck: int = attrs.field(default=4, validator=v.ge(1))
    """A block's branch is this many times narrower than its output [2]."""
    n_init: int = attrs.field(default=128, validator=v.ge(1))
    """Width of a code's embedding: output channels of the decoder's first convolution [2]."""
    vocab_size: int = attrs.field(default=8192, validator=v.ge(2))
    """Number of codes, K [1]."""
    logit_gain: float = attrs.field(default=1.0, validator=v.gt(0))
    """Constant factor on the encoder's logits; 1 in [1]. With a start temperature of the same size the relaxation
    begins almost without noise, as an autoencoder, and grows noisier as the temperature falls."""
    code_std: float | None = attrs.field(default=None, validator=v.optional(v.gt(0)))
    """Standard deviation of the code embeddings at birth; None: 1/sqrt(K) [2], which is faint when a soft code mixes
    many of them."""
    epsilon: float = attrs.field(default=0.1, validator=[v.ge(0), v.lt(0.5)])
    """Pixels in [0, 1] are squeezed to [epsilon, 1 - epsilon], away from the logit's poles [1] appendix A.3."""
    mean: float = attrs.field(default=0.0, validator=[v.ge(0), v.lt(1)])
    """Subtracted from the squeezed pixels before the encoder, and what the decoder paints at birth; 0: neither, as in
    [1]. Near the pictures' background, it keeps one code from winning everywhere before training begins."""
    std: float = attrs.field(default=1.0, validator=v.gt(0))
    """Divides the centred pixels before the encoder; 1 in [1]."""
    log_scale_min: float | None = None
    """Lower bound of ln b in the likelihood; None: none, as in [1]. Flat synthetic pictures need one: without it
    b falls without end where every pixel is predicted exactly."""
    log_scale_start: float | None = None
    """The bound at the first update, from which it goes to `log_scale_min` on a cosine; None: constant."""
    log_scale_updates: int = attrs.field(default=0, validator=v.ge(0))
    """Updates of the bound's cosine."""

    kl_weight_start: float = attrs.field(default=0.0, validator=v.ge(0))
    """Weight of the KL term at the first update [1]. Above `kl_weight` it anneals the codes: spread over the whole
    vocabulary first, sharpened later, which keeps a small codebook from collapsing."""
    kl_weight: float = attrs.field(default=6.6, validator=v.ge(0))
    """Final weight of the KL term, beta [1] appendix A.2."""
    kl_updates: int = attrs.field(default=5_000, validator=v.ge(0))
    """Updates over which the KL weight goes from its start to its end, on a cosine [1]."""
    temperature_start: float = attrs.field(default=1.0, validator=v.gt(0))
    """Temperature of the relaxation at the first update [1]."""
    temperature_end: float = attrs.field(default=1 / 16, validator=v.gt(0))
    """Temperature after `temperature_updates` [1]."""
    temperature_updates: int = attrs.field(default=150_000, validator=v.ge(0))
    """Updates of the temperature's cosine [1]; a linear fall diverged."""

    image_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Side of the square picture, in pixels; None: left to the system."""
    train: Recipe = attrs.field(factory=Recipe)
    """How it is trained."""

    @bottleneck.validator
    def _divides(self, attribute: Any, value: int) -> None:
        if self.n_hid % value:
            raise ValueError(f"'bottleneck' must divide n_hid ({self.n_hid}): {value}")

    @image_size.validator
    def _whole_grid(self, attribute: Any, value: int | None) -> None:
        if value is not None and value % self.factor:
            raise ValueError(f"'image_size' must be a multiple of {self.factor} (2^(groups-1)): {value}")

    @property
    def factor(self) -> int:
        """Pixels per code along each axis."""
        return 2 ** (self.groups - 1)

    def grid(self, height: int, width: int) -> Grid:
        """Return the code grid of a picture of `height` x `width` pixels.

        Raises:
            ConfigError: a side is not a positive multiple of `factor`.
        """
        if min(height, width) < 1 or height % self.factor or width % self.factor:
            raise ConfigError(
                f"image_size: a {height}x{width} picture has no whole code grid; "
                f"this dVAE needs sides that are multiples of {self.factor}"
            )
        return height // self.factor, width // self.factor

    def facts(self, image_size: int) -> Facts:
        """Return the vocabulary and the code grid of a square picture."""
        return Facts(vocab_size=self.vocab_size, grids=(self.grid(image_size, image_size),))

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.cost(self)

    def kl_weight_at(self, step: int) -> float:
        """Return the KL weight at an update."""
        return cosine(self.kl_weight_start, self.kl_weight, self.kl_updates, step)

    def log_scale_min_at(self, step: int) -> float | None:
        """Return the lower bound of ln b at an update."""
        if self.log_scale_min is None or self.log_scale_start is None:
            return self.log_scale_min
        return cosine(self.log_scale_start, self.log_scale_min, self.log_scale_updates, step)

    def temperature_at(self, step: int) -> float:
        """Return the temperature of the relaxation at an update."""
        return cosine(self.temperature_start, self.temperature_end, self.temperature_updates, step)


def dvae_8192() -> Dvae:
    """Return DALL-E's own dVAE: 256 px, 32x32 codes of 8192, 97 616 006 parameters [1, 2]."""
    return Dvae(
        image_size=256,
        train=Recipe(
            lr=1e-4,
            lr_end=1.25e-6,
            betas=(0.9, 0.999),
            eps=1e-8,
            weight_decay=1e-4,
            schedule="cosine",
            decay_steps=1_200_000,
            clip=None,
            ema=0.999,
            batch=512,
            steps=3_000_000,
            transform="dvae",
        ),
    )


def dvae() -> Dvae:
    """Return the laptop-size dVAE: 32 px, 8x8 codes, trained in two minutes on two CPU cores.

    Flat drawn pictures collapse the paper's schedules to a handful of codes; README.md says what is set instead, and
    why.
    """
    return Dvae(
        n_hid=32,
        groups=3,
        blocks=1,
        n_init=64,
        vocab_size=96,
        logit_gain=8.0,
        code_std=1.4,
        mean=0.853,
        std=0.2,
        log_scale_min=0.0,
        kl_weight_start=0.05,
        kl_weight=0.05,
        kl_updates=0,
        temperature_start=8.0,
        temperature_end=0.5,
        temperature_updates=900,
        image_size=32,
        train=Recipe(
            lr=6e-3, betas=(0.9, 0.99), weight_decay=1e-4, warmup=50, clip=1.0, ema=0.99, batch=32, steps=1_000
        ),
    )


def dvae_tiny() -> Dvae:
    """Return a dVAE for tests: 16 px, 4x4 codes."""
    return attrs.evolve(
        dvae(),
        n_hid=8,
        n_init=8,
        vocab_size=32,
        temperature_updates=50,
        image_size=16,
        train=Recipe(lr=3e-3, warmup=5, batch=8, steps=60),
    )

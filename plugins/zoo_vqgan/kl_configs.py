"""Config of the KL autoencoder of latent diffusion, and its variants. Imports no torch.

[1] R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer: High-resolution image synthesis with latent diffusion
    models. arXiv:2112.10752.
[2] The authors' code and published configs: github.com/CompVis/latent-diffusion.
[3] Stable Diffusion's: github.com/CompVis/stable-diffusion, `configs/stable-diffusion/v1-inference.yaml`.
"""

from typing import Any

import attrs
from attrs import evolve
from attrs import validators as v

from zoo.cost import Cost
from zoo.parts import Facts, Recipe
from zoo_vqgan import cost
from zoo_vqgan.configs import Net

_positive_or_none: Any = v.optional(v.gt(0.0))  # Any: attrs' types take the default's type for the field's


def _net() -> Net:
    """Return the encoder and decoder of f8. [2] `models/first_stage_models/kl-f8/config.yaml`"""
    return Net(multipliers=(1, 2, 4, 4), attention=(), z_channels=4)


@attrs.frozen(kw_only=True)
class Kl:
    """A KL autoencoder without its adversary: encoder, a normal posterior, decoder. [1] section 3.1"""

    net: Net = attrs.field(factory=_net)
    """Encoder and decoder. `z_channels` counts the mean's: the encoder gives as many log-variances (`double_z` in
    [2]). Attention is in the middle alone in all of [2]'s f4 and f8."""
    channels: int = attrs.field(default=4, validator=v.ge(1))
    """Channels of the latent; `embed_dim` in [2]."""
    scale: float | None = attrs.field(default=0.18215, validator=_positive_or_none)
    """What the latent is multiplied by to have about unit variance; `scale_factor` in [3], which has it from [1]
    section D.1: one over the deviation of a batch's latents. None: one over the running root mean square of the
    samples in training, a buffer."""
    kl_weight: float = attrs.field(default=1e-6, validator=v.ge(0))
    """Weight of the KL to the standard normal in nats a picture, beside |x - x'| summed over its pixels in [-1, 1].
    [2]"""
    image_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Side of the square picture, in pixels; None: left to the system."""
    train: Recipe = attrs.field(factory=Recipe)
    """How it is trained."""

    @image_size.validator
    def _whole_grid(self, attribute: Any, value: int | None) -> None:
        if value is not None and value % self.net.factor:
            raise ValueError(f"'image_size' must be a multiple of {self.net.factor} (2^(levels-1)): {value}")

    def facts(self, image_size: int) -> Facts:
        """Return channels and size of a square picture's latent, which is not bounded.

        Raises:
            ConfigError: the side is not a multiple of the reduction.
        """
        return Facts(channels=self.channels, size=self.net.grid(image_size, image_size), bounded=False)

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.kl(self)


def kl_f8() -> Kl:
    """Return the first stage of Stable Diffusion 1 and 2: 256 px, 32x32x4, 83 653 863 parameters. [2]

    Batch (12, accumulated twice), Adam and a learning rate of 4.5e-6 a sample are those of
    `configs/autoencoder/autoencoder_kl_32x32x4.yaml` on one device, 246 803 updates those of the published weights
    (README of [2]), which does not say on how many.
    """
    recipe = Recipe(
        optimizer="adam",
        lr=24 * 4.5e-6,
        betas=(0.5, 0.9),
        schedule="constant",
        clip=None,
        batch=24,
        steps=246_803,
        transform="crop",
    )
    return Kl(image_size=256, train=recipe)


def kl() -> Kl:
    """Return the laptop size: 32 px, 8x8x4, its scale measured.

    Its KL weight is far above [2]'s: flat drawn pictures stay sharp, with a quarter of the nats of 1e-3.
    """
    return Kl(
        net=Net(channels=16, multipliers=(1, 2, 2), blocks=1, attention=(), groups=8, z_channels=4),
        scale=None,
        kl_weight=0.03,
        image_size=32,
        train=Recipe(optimizer="adam", lr=2e-3, betas=(0.9, 0.99), warmup=50, batch=32, steps=1200),
    )


def kl_tiny() -> Kl:
    """Return one for tests: 16 px, 4x4x4."""
    base = kl()
    return evolve(
        base,
        net=evolve(base.net, channels=8, groups=4),
        image_size=16,
        train=evolve(base.train, batch=8, steps=60, warmup=5),
    )

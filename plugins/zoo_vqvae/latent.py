"""Continuous latents: a VAE of the VQ-VAE's size, and the VQ-VAE's own vectors.

Letters: B batch, C channels, h w latent grid. A unit is one channel at one place. Images are [B,3,H,W] in [0, 1].

[1] D. Kingma, M. Welling: Auto-encoding variational Bayes. arXiv:1312.6114.
[2] A. van den Oord, O. Vinyals, K. Kavukcuoglu: Neural discrete representation learning. arXiv:1711.00937.
[3] Y. Burda, R. Grosse, R. Salakhutdinov: Importance weighted autoencoders. arXiv:1509.00519 (active units).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn import across
from zoo.nn.quantise import wide
from zoo.nn.running import track_mean_square
from zoo.parts import Grid
from zoo.rng import Rng
from zoo_vqvae.configs import Vae as VaeConfig
from zoo_vqvae.configs import VqLatent as VqLatentConfig
from zoo_vqvae.likelihood import bits, likelihood
from zoo_vqvae.model import decoder, encoder

ACTIVE = 0.01
"""Nats of mean KL above which a unit carries information, after [3] appendix C."""


class Vae(nn.Module):
    """A VAE with a diagonal normal posterior and a standard normal prior: a Latent. [1]

    The latent is divided by the running root mean square of its samples, a buffer: near 1 in a trained model, whose
    samples together are distributed much like the prior.
    """

    bounded = False
    mean_square: Tensor
    updates: Tensor

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.channels = config.channels
        self.pixels = likelihood(config.pixels)
        self.encoder = encoder(config.net, 2 * config.channels)
        self.decoder = decoder(config.net, config.channels, self.pixels.channels)
        self.register_buffer("mean_square", torch.ones(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def size(self, height: int, width: int) -> Grid:
        """Return (h, w).

        Raises:
            ConfigError: a side is not a multiple of the reduction.
        """
        return self.config.net.grid(height, width)

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, each [B,C,h,w]."""
        self.size(*images.shape[-2:])
        mean, logvar = wide(self.encoder(images - 0.5)).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    @torch.no_grad()
    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Return z [B,C,h,w] of about unit mean square: the posterior's mean, or a sample where `rng` is given."""
        mean, logvar = self.posterior(images)
        z = mean if rng is None else _sample(mean, logvar, rng)
        return z / self.mean_square.sqrt()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return images [B,3,H,W] of z [B,C,h,w]."""
        return self.pixels.decode(self.decoder(z * self.mean_square.sqrt()))

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return the negative bound in nats per dimension, KL weighted by beta. [1] eq. (3)

        Beside it: `kl` in nats a picture, `kl_per_unit` its mean over units, `kl_max` of the fullest unit, and
        `active_units`, the share of units whose mean KL is above 0.01 nats: 0 is a collapsed posterior.
        """
        images = batch.images
        if images is None:
            raise ConfigError("batch.images: a latent is trained on pictures")
        mean, logvar = self.posterior(images)
        z = _sample(mean, logvar, rng)
        out = self.decoder(z)
        nll_B = self.pixels.nll(out, images)
        kl_BU = _kl(mean, logvar).flatten(1)
        dims = images[0].numel()
        with torch.no_grad():
            if self.training:
                track_mean_square(self.mean_square, self.updates, z)
            curves = unit_curves(kl_BU)
            curves["bits_per_dim"] = bits(nll_B + kl_BU.sum(1), images).mean()
            curves["rmse"] = self.pixels.error(out, images).mean().sqrt()
        return {"loss": ((nll_B + self.config.beta * kl_BU.sum(1)) / dims).mean(), **curves}

    @torch.no_grad()
    def kl_units(self, images: Tensor) -> Tensor:
        """Return the mean KL [C,h,w] of every unit over these pictures, in nats."""
        return _kl(*self.posterior(images)).mean(0)

    @torch.no_grad()
    def bits_per_dim(self, images: Tensor, rng: Rng) -> Tensor:
        """Return [B]: the bound on -log2 p(x) per dimension, at one posterior sample a picture."""
        mean, logvar = self.posterior(images)
        nll_B = self.pixels.nll(self.decoder(_sample(mean, logvar, rng)), images)
        return bits(nll_B + _kl(mean, logvar).flatten(1).sum(1), images)


def _sample(mean: Tensor, logvar: Tensor, rng: Rng) -> Tensor:
    noise = rng.fork("posterior").normal(*mean.shape[1:], device=mean.device)
    return mean + (0.5 * logvar).exp() * noise.to(mean)


def _kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL to the standard normal of every unit, in nats. [1] appendix B"""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def unit_curves(kl_BU: Tensor) -> dict[str, Tensor]:
    """Return curves of the KL [B,U] of U units over the global batch."""
    kl_BU = kl_BU.detach()
    total = across.sum(torch.cat([kl_BU.sum(0), kl_BU.new_tensor([len(kl_BU)])]))
    kl_U = total[:-1] / total[-1]
    return {
        "kl": kl_U.sum(),
        "kl_per_unit": kl_U.mean(),
        "kl_max": kl_U.max(),
        "active_units": (kl_U > ACTIVE).float().mean(),
    }


class VqLatent(nn.Module):
    """A VQ-VAE's vectors in front of the quantiser: a Latent whose decoding quantises first.

    It has no state of its own: the scale is the root mean square of the codes, weighted by their use. The codebook is
    a part of its own, trained and stored as one, so it is held where `parameters()` does not find it.
    """

    bounded = False
    codebook: Any

    def __init__(self, config: VqLatentConfig, codebook: Any) -> None:
        super().__init__()
        missing = [name for name in ("latents", "continuous", "snap", "render", "rms") if not hasattr(codebook, name)]
        if missing:
            raise PartMismatch(
                f"'{config.codebook.card}' has no vectors in front of its codes: use a VQ-VAE's codebook"
            )
        self.config = config
        object.__setattr__(self, "codebook", codebook)
        self.channels = codebook.config.channels

    def _apply(self, fn: Any, recurse: bool = True) -> VqLatent:
        self.codebook._apply(fn, recurse)  # follow to another device or type
        return super()._apply(fn, recurse)

    def size(self, height: int, width: int) -> Grid:
        """Return (h, w)."""
        return self.codebook.grids(height, width)[0]

    @torch.no_grad()
    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Return z [B,C,h,w] of about unit mean square; `rng` is not used, there is no noise."""
        return wide(self.codebook.continuous(self.codebook.latents(images))) / self.codebook.rms()

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return images [B,3,H,W] of z [B,C,h,w], each place first put on its nearest code."""
        return self.codebook.render(self.codebook.snap(z * self.codebook.rms()))

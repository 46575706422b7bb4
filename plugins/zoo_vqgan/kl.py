"""The KL autoencoder of latent diffusion: VQGAN's encoder and decoder about a normal posterior.

Letters: B batch, C channels, h w latent grid. Images are in [0, 1] outside and in [-1, 1] inside.

[1] R. Rombach, A. Blattmann, D. Lorenz, P. Esser, B. Ommer: High-resolution image synthesis with latent diffusion
    models. arXiv:2112.10752.
[2] The authors' code, github.com/CompVis/latent-diffusion: `ldm/models/autoencoder.py`,
    `ldm/modules/distributions/distributions.py`, `ldm/modules/losses/contperceptual.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn.precision import wide
from zoo.nn.running import track_mean_square
from zoo.parts import Facts, Grid
from zoo.rng import Rng
from zoo_vqgan.kl_configs import Kl as Config
from zoo_vqgan.model import Decoder, Encoder, pixels


class Kl(nn.Module):
    """A KL autoencoder without its adversary: a `zoo.interfaces.Latent` with a loss.

    Args:
        config: its sizes. `image_size` is not needed: it takes pictures of any whole grid.
    """

    bounded = False
    mean_square: Tensor
    updates: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.channels = config.channels
        self.encoder = Encoder(config.net, 2 * config.net.z_channels)
        self.before = nn.Conv2d(2 * config.net.z_channels, 2 * config.channels, 1)
        self.after = nn.Conv2d(config.channels, config.net.z_channels, 1)
        self.decoder = Decoder(config.net)
        if config.scale is None:
            self.register_buffer("mean_square", torch.ones(()))
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def facts(self, image_size: int) -> Facts:
        """Return what `config.facts` says."""
        return self.config.facts(image_size)

    def size(self, height: int, width: int) -> Grid:
        """Return (h, w).

        Raises:
            ConfigError: a side is not a multiple of the reduction.
        """
        return self.config.net.grid(height, width)

    @property
    def scale(self) -> float | Tensor:
        """What the latent is multiplied by: given, or measured in training."""
        return self.mean_square.rsqrt() if self.config.scale is None else self.config.scale

    def posterior(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance before scaling, each [B,C,h,w] in fp32 or wider, of images [B,3,H,W].

        Raises:
            ConfigError: a side is not a multiple of the reduction.
        """
        self.size(*images.shape[-2:])
        x = (2 * images - 1).to(self.before.weight.dtype)
        mean, logvar = wide(self.before(self.encoder(x))).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)  # [2]

    def paint(self, z: Tensor) -> Tensor:
        """Return pictures [B,3,H,W], about [-1, 1] and in fp32 or wider, of z [B,C,h,w] before scaling."""
        return wide(self.decoder(self.after(z.to(self.after.weight.dtype))))

    @torch.no_grad()
    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Return z [B,C,h,w] of images [B,3,H,W] in [0, 1]: the posterior's mean, or a sample where `rng` is given."""
        mean, logvar = self.posterior(images)
        z = mean if rng is None else draw(mean, logvar, rng)
        return z * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return images [B,3,H,W] in [0, 1] of z [B,C,h,w]."""
        return pixels(self.paint(z / self.scale))

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return |x - x'| plus the weighted KL, both summed over a picture, divided by its values: 3HW.

        Pixels are in [-1, 1], x' is painted from a sample of the posterior. That is [2]'s loss without its perceptual
        and adversarial terms, over 3HW. The log-variance of the pixels that [2] has beside it is 0 and stays so: its
        optimiser is not given it.

        Returns:
            loss: mean over samples.
            reconstruction: its first term. rmse: of the pixels in [0, 1].
            kl: nats a picture.
            latent_std: of all values of the samples, before scaling.
        """
        images = batch.images
        if images is None:
            raise PartMismatch("a KL autoencoder trains on pictures, and this batch has none")
        mean, logvar = self.posterior(images)
        z = draw(mean, logvar, rng)
        out = self.paint(z)
        reconstruction_B = (out - (2 * images - 1)).abs().flatten(1).mean(1)
        kl_B = kl_to_normal(mean, logvar)
        with torch.no_grad():
            if self.training and self.config.scale is None:
                track_mean_square(self.mean_square, self.updates, z)
            rmse = (pixels(out) - images).square().mean().sqrt()
        return {
            "loss": (reconstruction_B + self.config.kl_weight / images[0].numel() * kl_B).mean(),
            "reconstruction": reconstruction_B.detach().mean(),
            "rmse": rmse,
            "kl": kl_B.detach().mean(),
            "latent_std": z.detach().std(),
        }


def draw(mean: Tensor, logvar: Tensor, rng: Rng) -> Tensor:
    """Return a sample of the posterior [B,C,h,w]."""
    noise = rng.fork("posterior").normal(*mean.shape[1:], device=mean.device)
    return mean + (0.5 * logvar).exp() * noise.to(mean)


def kl_to_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """Return KL(N(mean, exp(logvar)) || N(0, 1)) in nats a picture: [B,C,h,w] -> [B]."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)

"""VQ-VAE: encoder, quantiser, decoder.

Letters: B batch, D code width, K codes, h w code grid, N codes of one picture. Images are [B,3,H,W] in [0, 1].

[1] A. van den Oord, O. Vinyals, K. Kavukcuoglu: Neural discrete representation learning. arXiv:1711.00937.
[2] The authors' code: github.com/google-deepmind/sonnet, `sonnet/src/nets/vqvae.py` and its example notebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn.fsq import ScalarQuantiser
from zoo.nn.quantise import EmaCodes, GradientCodes, VectorQuantiser
from zoo.nn.residual import Residual
from zoo.parts import Grid
from zoo.rng import Rng
from zoo_vqvae.configs import FsqVae, Net
from zoo_vqvae.configs import VqVae as VqVaeConfig
from zoo_vqvae.likelihood import bits, likelihood


def stack(width: int, net: Net) -> nn.Sequential:
    """Return the residual blocks and the ReLU after them. [1] §4.1"""
    blocks: list[nn.Module] = [
        Residual(
            nn.Sequential(
                nn.ReLU(),
                nn.Conv2d(width, net.residual_hidden, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(net.residual_hidden, width, 1),
            )
        )
        for _ in range(net.residual_layers)
    ]
    return nn.Sequential(*blocks, nn.ReLU())


def encoder(net: Net, channels: int) -> nn.Sequential:
    """Return the map from pixels [B,3,H,W] in [-0.5, 0.5] to [B,channels,h,w]."""
    layers: list[nn.Module] = []
    for before, width in zip((3, *net.widths), net.widths, strict=False):
        layers += [nn.Conv2d(before, width, 4, stride=2, padding=1), nn.ReLU()]
    last = net.widths[-1]
    # Every branch of the stack begins with a ReLU: in front of it comes a convolution, never a second ReLU.
    layers = [*layers, nn.Conv2d(last, last, 3, padding=1)] if net.mix else layers[:-1]
    return nn.Sequential(*layers, stack(last, net), nn.Conv2d(last, channels, 1))


def decoder(net: Net, channels: int, out: int) -> nn.Sequential:
    """Return the map from [B,channels,h,w] to [B,out,H,W]."""
    last = net.widths[-1]
    kernel = 3 if net.mix else 1
    layers: list[nn.Module] = [nn.Conv2d(channels, last, kernel, padding=kernel // 2), stack(last, net)]
    up = (*net.widths[::-1][1:], out)
    for before, width in zip(net.widths[::-1], up, strict=True):
        layers += [nn.ConvTranspose2d(before, width, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


Quantiser = VectorQuantiser | ScalarQuantiser


def quantiser(config: VqVaeConfig | FsqVae) -> Quantiser:
    """Return one quantiser of a config."""
    if isinstance(config, FsqVae):
        return ScalarQuantiser(config.levels)
    codes = (EmaCodes if config.codebook == "ema" else GradientCodes)(config.vocab_size, config.width)
    return VectorQuantiser(
        codes,
        beta=config.beta,
        estimator=config.estimator,
        decay=config.decay,
        revive_below=config.revive_below,
    )


def uniform_prior(codes: Tensor, vocab_size: int) -> Tensor:
    """Return log p(z) [B] in nats under the prior of training: -N ln K. [1] §3.1"""
    return torch.full((len(codes),), -codes[0].numel() * math.log(vocab_size), device=codes.device)


class VqVae(nn.Module):
    """A VQ-VAE or its FSQ twin: a Codebook.

    The KL term of the bound is constant, ln K for each code, and is not in the loss. [1] §3.1
    """

    def __init__(self, config: VqVaeConfig | FsqVae) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.pixels = likelihood(config.pixels)
        books = 1 if isinstance(config, FsqVae) else config.books
        self.encoder = encoder(config.net, config.channels)
        self.books = nn.ModuleList(quantiser(config) for _ in range(books))
        self.decoder = decoder(config.net, config.channels, self.pixels.channels)

    @property
    def whole_batch(self) -> bool:
        """True when a training step must see the whole global batch at once: gradient accumulation is refused."""
        return any(book.whole_batch for book in self._books())

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.encoder.parameters()).dtype

    def _books(self) -> list[Quantiser]:
        return cast(list[Quantiser], list(self.books))

    def _parts(self, z: Tensor) -> Iterator[tuple[Quantiser, Tensor]]:
        """Yield each codebook with its own channels of z [B,C,h,w]."""
        return zip(self._books(), z.chunk(len(self.books), dim=1), strict=True)

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """Return one (h, w) for each codebook.

        Raises:
            ConfigError: a side is not a multiple of the reduction.
        """
        return (self.config.net.grid(height, width),) * len(self.books)

    def latents(self, images: Tensor) -> Tensor:
        """Return what the quantiser is given, [B,C,h,w]."""
        self.config.net.grid(*images.shape[-2:])
        return self.encoder((images - 0.5).to(self.dtype))

    def render(self, z: Tensor) -> Tensor:
        """Return images of quantised vectors [B,C,h,w]."""
        return self.pixels.decode(self.decoder(z.to(self.dtype)))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return codes [B,N] int64, one codebook's grid after the other."""
        return torch.cat([book.encode(z).flatten(1) for book, z in self._parts(self.latents(images))], dim=1)

    def vectors(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """Return the codes' vectors [B,C,h,w].

        Raises:
            ConfigError: the grids are not this codebook's, or do not hold as many codes.
        """
        if len(grids) != len(self.books) or len(set(grids)) != 1 or sum(h * w for h, w in grids) != codes.shape[1]:
            raise ConfigError(f"grids: {grids} do not describe {codes.shape[1]} codes of {len(self.books)} codebook(s)")
        parts = zip(self._books(), codes.chunk(len(self.books), dim=1), strict=True)
        return torch.cat([book.decode(k.unflatten(1, grids[0])) for book, k in parts], dim=1)

    @torch.no_grad()
    def decode(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """Return images [B,3,H,W] of codes [B,N]."""
        return self.render(self.vectors(codes, grids))

    def continuous(self, z: Tensor) -> Tensor:
        """Return `latents` as `snap` takes them: as they are for VQ, bounded for FSQ."""
        return torch.cat([book.continuous(x) for book, x in self._parts(z)], dim=1)

    def snap(self, z: Tensor) -> Tensor:
        """Return the nearest codes' vectors of continuous latents [B,C,h,w]."""
        return torch.cat([book.snap(x) for book, x in self._parts(z)], dim=1)

    def rms(self) -> Tensor:
        """Return the root mean square of the codes' entries: what continuous latents are divided by."""
        return torch.stack([book.rms() for book in self._books()]).square().mean().sqrt()

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return [1] eq. (3), every term a mean over its elements, as in [2].

        Beside it: rmse of the pixels, commitment, and of the batch's codes the perplexity (1 to K), the share of
        codes used, and how many dead ones were revived (means over codebooks).
        """
        images = batch.images
        if images is None:
            raise ConfigError("batch.images: a codebook is trained on pictures")
        parts = enumerate(self._parts(self.latents(images)))
        found = [book(z, rng.fork(f"book{i}")) for i, (book, z) in parts]
        out = self.decoder(torch.cat([q.z for q in found], dim=1))
        reconstruction_B = self.pixels.loss(out, images)
        extra_B = torch.stack([q.loss for q in found]).mean(0)
        curves = {name: torch.stack([q.curves[name] for q in found]).mean() for name in found[0].curves}
        with torch.no_grad():
            rmse = self.pixels.error(out, images).mean().sqrt()
        return {
            "loss": (reconstruction_B + extra_B).mean(),
            "reconstruction": reconstruction_B.detach().mean(),
            "rmse": rmse,
            **curves,
        }

    @torch.no_grad()
    def bits_per_dim(self, images: Tensor, log_prior: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return [B]: -log2 p(x|z) p(z) per dimension, an upper bound on -log2 p(x). [1] §3.1

        Args:
            images: [B,3,H,W].
            log_prior: codes [B,N] to log p(z) [B] in nats, such as a trained prior's `log_prob`; None: uniform.
        """
        codes = self.encode(images)
        vectors = self.vectors(codes, self.grids(*images.shape[-2:]))
        out = self.decoder(vectors.to(self.dtype))
        log_z = uniform_prior(codes, self.vocab_size) if log_prior is None else log_prior(codes)
        return bits(self.pixels.nll(out, images) - log_z, images)

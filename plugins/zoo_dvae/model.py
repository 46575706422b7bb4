"""The discrete VAE of DALL-E.

Letters: B batch, H W pixels, h w code grid, N = h*w, K codes, C channels.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, section 2.1 and appendix A
[2] The authors' encoder and decoder, github.com/openai/DALL-E
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.amp import is_autocast_available
from torch.nn import functional as F

from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn import across
from zoo.nn.residual import Residual
from zoo.parts import Facts, Grid
from zoo.rng import Rng
from zoo_dvae import configs
from zoo_dvae.losses import kl_to_uniform, logit_laplace_nll, map_pixels, relax, unmap_pixels


class Conv(nn.Conv2d):
    """A convolution that keeps the size; weights from N(0, 1/fan_in), biases zero [2]."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__(n_in, n_out, kernel, padding=kernel // 2)

    def reset_parameters(self) -> None:
        """Initialise in place."""
        nn.init.normal_(self.weight, std=self.weight[0].numel() ** -0.5)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Paint(Conv):
    """The decoder's last convolution, to mu and ln b; it paints `mean` at birth, or 0.5 where that is 0."""

    def __init__(self, n_in: int, mean: float) -> None:
        super().__init__(n_in, 6, 1)
        if self.bias is not None and mean > 0:
            nn.init.constant_(self.bias[:3], math.log(mean / (1 - mean)))


class Pointwise(nn.Linear):
    """A 1x1 convolution on [B,h,w,C], as the matrix product it is, in full precision also under autocast.

    The two that touch the codes, the encoder's last and the decoder's first, are kept out of half precision in [2].
    """

    def reset_parameters(self) -> None:
        """Initialise in place."""
        nn.init.normal_(self.weight, std=self.in_features**-0.5)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,h,w,n_out] for [B,h,w,n_in]."""
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if is_autocast_available(kind) else nullcontext():
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class Codes(Pointwise):
    """The codebook: the decoder's first convolution, on soft codes [B,h,w,K] or on hard ones [B,h,w] int64."""

    def __init__(self, vocab_size: int, width: int, std: float | None) -> None:
        super().__init__(vocab_size, width)
        if std is not None:
            nn.init.normal_(self.weight, std=std)

    def forward(self, z: Tensor) -> Tensor:
        """Return embeddings [B,h,w,C]; a hard code looks its column up, which equals the one-hot product."""
        if z.is_floating_point():
            return super().forward(z)
        return F.embedding(z, self.weight.t()) + self.bias


def block(n_in: int, n_out: int, kernels: tuple[int, ...], config: configs.Dvae) -> Residual:
    """Return one residual block: ReLU before every convolution, no normalisation [2].

    The branch is scaled by the square of the number of blocks, which [1] A.1 calls essential for stability.
    """
    inner = n_out // config.bottleneck
    widths = (n_in, *[inner] * (len(kernels) - 1), n_out)
    layers: list[nn.Module] = []
    for i, kernel in enumerate(kernels):
        # Only the first ReLU sees the identity path's tensor; the others may overwrite their input.
        layers += [nn.ReLU(inplace=i > 0), Conv(widths[i], widths[i + 1], kernel)]
    skip = Conv(n_in, n_out, 1) if n_in != n_out else None
    return Residual(nn.Sequential(*layers), gain=(config.groups * config.blocks) ** -2, skip=skip)


def stack(n_in: int, widths: list[int], kernels: tuple[int, ...], config: configs.Dvae) -> nn.ModuleList:
    """Return the groups of blocks; the first block of a group changes the width."""
    groups = nn.ModuleList()
    for width in widths:
        blocks = [block(width if i else n_in, width, kernels, config) for i in range(config.blocks)]
        groups.append(nn.Sequential(*blocks))
        n_in = width
    return groups


class Encoder(nn.Module):
    """Pictures [B,3,H,W] in [epsilon, 1 - epsilon] to logits [B,h,w,K]."""

    def __init__(self, config: configs.Dvae) -> None:
        super().__init__()
        widths = [config.n_hid * 2**i for i in range(config.groups)]
        self.input = Conv(3, config.n_hid, 7)
        self.groups = stack(config.n_hid, widths, (3, 3, 3, 1), config)
        self.output = Pointwise(widths[-1], config.vocab_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B,h,w,K]."""
        x = self.input(x.contiguous(memory_format=torch.channels_last))
        for i, group in enumerate(self.groups):
            x = group(F.max_pool2d(x, 2) if i else x)
        return self.output(F.relu(x).permute(0, 2, 3, 1))


class Decoder(nn.Module):
    """Codes, soft [B,h,w,K] or hard [B,h,w], to the likelihood's parameters [B,6,H,W]: 3 of mu, 3 of ln b."""

    def __init__(self, config: configs.Dvae) -> None:
        super().__init__()
        widths = [config.n_hid * 2**i for i in reversed(range(config.groups))]
        self.input = Codes(config.vocab_size, config.n_init, config.code_std)
        self.groups = stack(config.n_init, widths, (1, 3, 3, 3), config)
        self.output = Paint(config.n_hid, config.mean)

    def forward(self, z: Tensor) -> Tensor:
        """Return [B,6,H,W]."""
        x = self.input(z).permute(0, 3, 1, 2)
        for i, group in enumerate(self.groups):
            x = group(F.interpolate(x, scale_factor=2, mode="nearest") if i else x)
        return self.output(F.relu(x))


class Dvae(nn.Module):
    """The dVAE as a `zoo.interfaces.Codebook` with a loss.

    Args:
        config: its sizes, likelihood and schedules. `image_size` is not needed: it is convolutional.
    """

    def __init__(self, config: configs.Dvae) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def facts(self, image_size: int) -> Facts:
        """Return what `config.facts` says."""
        return self.config.facts(image_size)

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """Return the one code grid of a picture.

        Raises:
            ConfigError: a side is not a multiple of `config.factor`.
        """
        return (self.config.grid(height, width),)

    def logits(self, images: Tensor) -> Tensor:
        """Return the posterior's logits [B,h,w,K], float32 or wider, of images [B,3,H,W] in [0, 1].

        Raises:
            ConfigError: a side is not a multiple of `config.factor`.
        """
        self.config.grid(*images.shape[-2:])
        x = map_pixels(images, self.config.epsilon).to(self.encoder.input.weight.dtype)
        return _widen(self.encoder((x - self.config.mean) / self.config.std)) * self.config.logit_gain

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return codes [B,N] int64, the likeliest at each position, of images [B,3,H,W] in [0, 1]."""
        return self.logits(images).argmax(-1).flatten(1)

    def decode(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """Return images [B,3,H,W] in [0, 1] of codes [B,N]: the likelihood's median, its scale ignored [2].

        Raises:
            PartMismatch: `grids` is not one grid of N codes, or a code is outside [0, K).
        """
        if len(grids) != 1 or grids[0][0] * grids[0][1] != codes.shape[1]:
            raise PartMismatch(f"a dVAE decodes one grid of codes: got {codes.shape[1]} codes for grids {tuple(grids)}")
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.vocab_size:
            raise PartMismatch(f"a dVAE of {self.vocab_size} codes got codes {int(codes.min())} to {int(codes.max())}")
        mu = _widen(self.decoder(codes.unflatten(1, grids[0]))[:, :3])
        return unmap_pixels(torch.sigmoid(mu), self.config.epsilon)

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return the negative ELBO per pixel value, beta-weighted and relaxed, at an update ([1] eq. (1), A.2).

        Reconstruction is summed over H*W*3 values and the KL over positions; both are divided by H*W*3.

        Returns:
            loss: mean over samples, nats per pixel value.
            recon: -ln p(x|z), nats per pixel value. kl: nats per position.
            temperature, kl_weight: at this step.
            usage, perplexity: distinct likeliest codes of the batch, and exp of their entropy.
        """
        images = batch.images
        if images is None:
            raise PartMismatch("a dVAE trains on pictures, and this batch has none")
        config = self.config
        temperature, kl_weight = config.temperature_at(step), config.kl_weight_at(step)
        logits_BhwK = self.logits(images)
        gumbel_BhwK = rng.gumbel(*logits_BhwK.shape[1:], device=logits_BhwK.device).to(logits_BhwK.dtype)
        mu, log_b = _widen(self.decoder(relax(logits_BhwK, gumbel_BhwK, temperature))).chunk(2, dim=1)
        if (bound := config.log_scale_min_at(step)) is not None:
            log_b = log_b.clamp(min=bound)
        target = map_pixels(images.to(mu.dtype), config.epsilon)
        recon_B = logit_laplace_nll(target, mu, log_b).flatten(1).sum(1)
        kl_B = kl_to_uniform(logits_BhwK).flatten(1).sum(1)
        values = images[0].numel()
        return {
            "loss": ((recon_B + kl_weight * kl_B) / values).mean(),
            "recon": recon_B.detach().mean() / values,
            "kl": kl_B.detach().mean() / logits_BhwK[0, ..., 0].numel(),
            "temperature": recon_B.new_tensor(temperature),
            "kl_weight": recon_B.new_tensor(kl_weight),
            **self._spread(logits_BhwK.detach()),
        }

    def _spread(self, logits_BhwK: Tensor) -> dict[str, Tensor]:
        """Return how many codes the batch uses, and how evenly (over all ranks in training)."""
        counts = torch.bincount(logits_BhwK.argmax(-1).flatten(), minlength=self.vocab_size).float()
        if self.training:
            counts = across.sum(counts)
        share = counts / counts.sum()
        return {"usage": (counts > 0).sum(), "perplexity": torch.exp(-torch.xlogy(share, share).sum())}


def _widen(x: Tensor) -> Tensor:
    """Return `x` in float32, or as it is when wider."""
    return x if x.dtype == torch.float64 else x.float()

"""VQGAN's autoencoder: a residual network with attention at its coarsest level.

Letters: B batch, C channels, H W pixels, h w code grid, N = h*w, K codes, D width of a code. Images are in [0, 1]
outside and in [-1, 1] inside, as in [2].

[1] P. Esser, R. Rombach, B. Ommer: Taming transformers for high-resolution image synthesis. arXiv:2012.09841.
[2] The authors' code, github.com/CompVis/taming-transformers, `taming/modules/diffusionmodules/model.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn.quantise import wide
from zoo.nn.residual import Residual
from zoo.parts import Facts, Grid
from zoo.rng import Rng
from zoo_vqgan import configs
from zoo_vqgan.quantisers import quantiser


def conv(n_in: int, n_out: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps the size, initialised as torch does [2]."""
    return nn.Conv2d(n_in, n_out, 3, padding=1)


def norm(groups: int, width: int) -> nn.GroupNorm:
    """Return the group norm of [2]; its statistics are fp32 in every precision."""
    return nn.GroupNorm(groups, width, eps=1e-6)


def block(n_in: int, n_out: int, groups: int) -> Residual:
    """Return one residual block: norm, swish and convolution, twice [2]."""
    layers = (norm(groups, n_in), nn.SiLU(), conv(n_in, n_out), norm(groups, n_out), nn.SiLU(), conv(n_out, n_out))
    return Residual(nn.Sequential(*layers), skip=nn.Conv2d(n_in, n_out, 1) if n_in != n_out else None)


class Attention(nn.Module):
    """The branch of self-attention over all places, one head as wide as the input [2]."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = norm(groups, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,C,h,w]."""
        x_BNC = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x_BNC).unsqueeze(1).chunk(3, dim=-1)  # [B,1,N,C]: a head axis of one
        y_BNC = F.scaled_dot_product_attention(q, k, v).squeeze(1)  # scaled by C^-0.5
        return self.out(y_BNC).transpose(1, 2).unflatten(2, x.shape[2:])


class Down(nn.Conv2d):
    """Halve the sides by a 3x3 convolution, padded on the right and below only [2]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,C,H/2,W/2]."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Conv2d):
    """Double the sides by repetition, then a 3x3 convolution [2]."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,C,2H,2W]."""
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


def level(n_in: int, width: int, blocks: int, reduction: int, net: configs.Net) -> list[nn.Module]:
    """Return one level's blocks, each followed by attention where the config says so; the first changes the width."""
    layers: list[nn.Module] = []
    for i in range(blocks):
        layers.append(block(width if i else n_in, width, net.groups))
        if reduction in net.attention:
            layers.append(Residual(Attention(width, net.groups)))
    return layers


def middle(width: int, groups: int) -> nn.Sequential:
    """Return block, attention, block [2]."""
    first = block(width, width, groups)
    return nn.Sequential(first, Residual(Attention(width, groups)), block(width, width, groups))


class Encoder(nn.Module):
    """Pictures [B,3,H,W] in [-1, 1] to [B,n_out,h,w]; n_out is `z_channels`, or twice that for mean and variance."""

    def __init__(self, net: configs.Net, n_out: int) -> None:
        super().__init__()
        self.input = conv(3, net.channels)
        self.levels = nn.ModuleList()
        n_in = net.channels
        for i, width in enumerate(net.widths):
            layers = level(n_in, width, net.blocks, 2**i, net)
            last = i == len(net.widths) - 1
            self.levels.append(nn.Sequential(*layers, *([] if last else [Down(width)])))
            n_in = width
        self.middle = middle(n_in, net.groups)
        self.norm = norm(net.groups, n_in)
        self.output = conv(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,n_out,h,w]."""
        x = self.input(x)
        for layers in self.levels:
            x = layers(x)
        return self.output(F.silu(self.norm(self.middle(x))))


class Decoder(nn.Module):
    """[B,z_channels,h,w] to pictures [B,3,H,W], about [-1, 1]; the coarsest level is the first."""

    def __init__(self, net: configs.Net) -> None:
        super().__init__()
        n_in = net.widths[-1]
        self.input = conv(net.z_channels, n_in)
        self.middle = middle(n_in, net.groups)
        self.levels = nn.ModuleList()
        for i, width in reversed(list(enumerate(net.widths))):
            layers = level(n_in, width, net.blocks + 1, 2**i, net)
            self.levels.append(nn.Sequential(*layers, *([Up(width)] if i else [])))
            n_in = width
        self.norm = norm(net.groups, n_in)
        self.output = conv(n_in, 3)

    def forward(self, z: Tensor) -> Tensor:
        """Return [B,3,H,W]."""
        x = self.middle(self.input(z))
        for layers in self.levels:
            x = layers(x)
        return self.output(F.silu(self.norm(x)))


class Vqgan(nn.Module):
    """VQGAN without its adversary: a `zoo.interfaces.Codebook` with a loss.

    Args:
        config: its sizes and its quantiser. `image_size` is not needed: it takes pictures of any whole grid.
    """

    def __init__(self, config: configs.Vqgan) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.encoder = Encoder(config.net, config.net.z_channels)
        self.before = nn.Conv2d(config.net.z_channels, config.width, 1)
        self.quantiser = quantiser(config)
        self.after = nn.Conv2d(config.width, config.net.z_channels, 1)
        self.decoder = Decoder(config.net)

    @property
    def whole_batch(self) -> bool:
        """True when a training step must see the whole global batch at once: gradient accumulation is refused."""
        return self.quantiser.whole_batch

    def facts(self, image_size: int) -> Facts:
        """Return what `config.facts` says."""
        return self.config.facts(image_size)

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """Return the one code grid of a picture.

        Raises:
            ConfigError: a side is not a multiple of the reduction.
        """
        return (self.config.net.grid(height, width),)

    def vectors(self, images: Tensor) -> Tensor:
        """Return what the quantiser is given, [B,D,h,w], of images [B,3,H,W] in [0, 1].

        Raises:
            ConfigError: a side is not a multiple of the reduction.
        """
        self.config.net.grid(*images.shape[-2:])
        return self.before(self.encoder((2 * images - 1).to(self.before.weight.dtype)))

    def paint(self, e: Tensor) -> Tensor:
        """Return pictures [B,3,H,W], about [-1, 1] and in fp32 or wider, of codes' vectors [B,D,h,w]."""
        return wide(self.decoder(self.after(e.to(self.after.weight.dtype))))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Return codes [B,N] int64 of images [B,3,H,W] in [0, 1]."""
        return self.quantiser.encode(self.vectors(images)).flatten(1)

    @torch.no_grad()
    def decode(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """Return images [B,3,H,W] in [0, 1] of codes [B,N].

        Raises:
            PartMismatch: `grids` is not one grid of N codes, or a code is outside [0, K).
        """
        if len(grids) != 1 or grids[0][0] * grids[0][1] != codes.shape[1]:
            raise PartMismatch(
                f"a VQGAN decodes one grid of codes: got {codes.shape[1]} codes for grids {tuple(grids)}"
            )
        if len(codes) and not 0 <= int(codes.min()) <= int(codes.max()) < self.vocab_size:
            raise PartMismatch(f"a VQGAN of {self.vocab_size} codes got codes {int(codes.min())} to {int(codes.max())}")
        return pixels(self.paint(self.quantiser.decode(codes.unflatten(1, grids[0]))))

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return the mean |x - x'| of pixels in [-1, 1] plus the quantiser's loss; [1] eq. (4) with L1, as in [2].

        Perceptual and adversarial losses, [1] eq. (5) to (7), are left out.

        Returns:
            loss: mean over samples.
            reconstruction: its first term. rmse: of the pixels in [0, 1].
            perplexity (1 to K), usage (share of the codes): of the batch's codes.
            commitment, revived; or kl, temperature: of the quantiser.
        """
        images = batch.images
        if images is None:
            raise PartMismatch("a VQGAN trains on pictures, and this batch has none")
        q = self.quantiser.train_codes(self.vectors(images), step=step, rng=rng)
        out = self.paint(q.z)
        reconstruction_B = (out - (2 * images - 1)).abs().flatten(1).mean(1)
        with torch.no_grad():
            rmse = (pixels(out) - images).square().mean().sqrt()
        return {
            "loss": (reconstruction_B + q.loss).mean(),
            "reconstruction": reconstruction_B.detach().mean(),
            "rmse": rmse,
            **q.curves,
        }


def pixels(x: Tensor) -> Tensor:
    """Return [-1, 1] as [0, 1]; what falls outside is clamped."""
    return ((x + 1) / 2).clamp(0, 1)

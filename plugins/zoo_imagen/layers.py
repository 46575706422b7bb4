"""Blocks of Imagen's U-Nets: residual blocks, attention that reads captions, resampling.

Letters: B batch, C channels, h w a level's sides, N = h*w, T text tokens, E width of the embedding, I inner width.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
[2] P. Dhariwal, A. Nichol: Diffusion models beat GANs on image synthesis. arXiv:2105.05233
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.conditioning import attend
from zoo.nn.residual import Residual
from zoo_imagen.norm import GroupNorm

KERNEL = 3
"""Side of every kernel [1] appendix F."""


class Conv(nn.Module):
    """A convolution that keeps the size, or halves it by a stride of 2.

    Its kernel is [n_out,k,k,n_in], channels last like the pictures: the usual order would be turned round in every
    forward and backward pass, a tenth of the time of a small batch.

    Args:
        n_in, n_out: channels.
        stride: 1 or 2.
        zero: whether it begins as zero.
    """

    def __init__(self, n_in: int, n_out: int, *, stride: int = 1, zero: bool = False) -> None:
        super().__init__()
        self.stride = stride
        self.weight = nn.Parameter(torch.empty(n_out, KERNEL, KERNEL, n_in))
        self.bias = nn.Parameter(torch.empty(n_out))
        if zero:
            zero_(self)
        else:
            reach = (KERNEL**2 * n_in) ** -0.5  # as torch initialises convolutions
            nn.init.uniform_(self.weight, -reach, reach)
            nn.init.uniform_(self.bias, -reach, reach)

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,n_out,h',w'] of [B,n_in,h,w]."""
        return F.conv2d(x, self.weight.permute(0, 3, 1, 2), self.bias, self.stride, KERNEL // 2)


class ZeroLinear(nn.Linear):
    """A linear layer that begins as zero."""

    def reset_parameters(self) -> None:
        """Set both parameters to zero."""
        zero_(self)


class Pointwise(nn.Linear):
    """A linear layer at every place: the shortcut of a residual block."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,n_out,h,w] of [B,n_in,h,w]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def zero_(layer: Conv | nn.Linear) -> None:
    """Set a layer's parameters to zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


class Down(nn.Module):
    """Halve the sides by averaging [2]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,C,h/2,w/2]."""
        # Half-way between four places this is their mean, and unlike pooling it keeps nothing for the backward pass.
        return F.interpolate(x, scale_factor=0.5, mode="bilinear")


class Up(nn.Module):
    """Double the sides by repetition [2]."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [B,C,2h,2w]."""
        return F.interpolate(x, scale_factor=2.0, mode="nearest")


class Block(nn.Module):
    """The branch of a residual block: norm, activation and convolution, twice [2] [1] section B.1.

    The embedding scales and shifts the second norm; resampling, where there is one, comes before the first convolution.
    """

    def __init__(
        self, n_in: int, n_out: int, time_width: int, groups: int, name: str, resample: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, n_in, name)
        self.resample = resample
        self.conv = Conv(n_in, n_out)
        self.modulation = nn.Linear(time_width, 2 * n_out)
        self.modulated = GroupNorm(groups, n_out, name)
        self.out = Conv(n_out, n_out, zero=True)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Return [B,n_out,h',w'] of [B,n_in,h,w] and an embedding [B,E] that its activation has passed."""
        x = self.norm(x)
        if self.resample is not None:
            x = self.resample(x)
        return self.out(self.modulated(self.conv(x), self.modulation(embedding)))


class Attention(nn.Module):
    """The branch of attention over all places, or over the caption alone where it is crossed.

    Text keys stand before the picture's, in one softmax [1] section 2.4.

    Args:
        width: C.
        inner: I, width of queries, keys and values.
        heads: divide I.
        groups: of the norm.
        crossed: the places attend to the caption alone.
    """

    def __init__(self, width: int, inner: int, heads: int, groups: int, *, crossed: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(groups, width, "none")
        self.query = nn.Linear(width, inner)
        self.keys = None if crossed else nn.Linear(width, 2 * inner)
        self.out = ZeroLinear(inner, width)

    def forward(self, x: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return [B,C,h,w] of the same; text [B,T,2I] holds keys and values, mask [B,T] is True where they are read."""
        x_BNC = self.norm(x).flatten(2).transpose(1, 2)
        keys: list[Tensor] = [] if text is None else [text]
        if self.keys is not None:
            keys.append(self.keys(x_BNC))
            mask = None if mask is None else F.pad(mask, (0, x_BNC.shape[1]), value=True)
        y_BNC = self.out(attend(self.query(x_BNC), torch.cat(keys, dim=1), self.heads, mask))
        return y_BNC.transpose(1, 2).unflatten(2, x.shape[2:])


def residual_block(n_in: int, n_out: int, time_width: int, groups: int, name: str, *, always: bool = False) -> Residual:
    """Return a residual block; a linear layer is on its shortcut where the width changes [2], or always [1]."""
    skip = Pointwise(n_in, n_out) if always or n_in != n_out else None
    return Residual(Block(n_in, n_out, time_width, groups, name), skip=skip)


def resampling_block(width: int, time_width: int, groups: int, name: str, resample: type[nn.Module]) -> Residual:
    """Return a residual block that resamples inside, its shortcut too [2]."""
    return Residual(Block(width, width, time_width, groups, name, resample()), skip=resample())

"""What DiffuSSM and DiT share: the way in, the way out, and modulation by the condition.

Letters: B batch, C channels of z, H W its sides, P patch, M positions a place, L = HW/P², J = L/M places, D width.

[1] J. Yan, J. Gu, A. Rush: Diffusion models without attention. arXiv:2311.18257
[2] W. Peebles, S. Xie: Scalable diffusion models with transformers. arXiv:2212.09748; github.com/facebookresearch/DiT
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo_diffussm import configs

EPS = 1e-6
"""Of every layer norm [2], code."""
STD = 0.02
"""Deviation of what embeds time and label at the start [2], code."""


class Xavier(nn.Linear):
    """A linear layer that begins as DiT's do: Xavier's uniform weights, no bias [2], code."""

    def reset_parameters(self) -> None:
        """Set both parameters."""
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)


class Zero(nn.Linear):
    """A linear layer that begins as zero."""

    def reset_parameters(self) -> None:
        """Set both parameters to zero."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class Small(nn.Linear):
    """A linear layer of the time embedding: normal weights, no bias [2], code."""

    def reset_parameters(self) -> None:
        """Set both parameters."""
        nn.init.normal_(self.weight, std=STD)
        nn.init.zeros_(self.bias)


class Labels(nn.Embedding):
    """A table of labels: normal entries [2], code."""

    def reset_parameters(self) -> None:
        """Set the table."""
        nn.init.normal_(self.weight, std=STD)


class Input(nn.Module):
    """z [B,C,H,W] and what is read beside it to [B,J,D]: one linear layer on a place's values, and its position."""

    def __init__(self, config: configs.DiffuSsm | configs.DiT) -> None:
        super().__init__()
        assert config.channels is not None
        assert config.size is not None
        self.patch, self.shortening = config.patch, config.shortening
        read = config.channels * (2 if config.low else 1)
        self.project = Xavier(read * config.patch**2 * config.shortening, config.width)
        self.positions: nn.Parameter | None = None
        if config.positions == "sincos":
            grid = config.size[0] // config.patch, config.size[1] // config.patch
            table = sincos(grid, config.width, config.shortening)
            self.positions = nn.Parameter(table, requires_grad=False)  # a parameter, as it is in [2]

    def forward(self, z: Tensor) -> Tensor:
        """Return [B,J,D]."""
        p = self.patch
        x = z.unflatten(3, (-1, p)).unflatten(2, (-1, p))  # [B,C,H/P,P,W/P,P]
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B,L,C P P], raster order
        x = self.project(x.unflatten(1, (-1, self.shortening)).flatten(2).to(self.project.weight.dtype))
        return x if self.positions is None else x + self.positions


class Head(nn.Module):
    """[B,J,D] to [B,C',H,W]: a modulated norm and one linear layer that begins as zero [2]."""

    def __init__(self, config: configs.DiffuSsm | configs.DiT) -> None:
        super().__init__()
        assert config.channels is not None
        assert config.size is not None
        channels = config.channels * (2 if config.variance == "learned" else 1)
        self.patch, self.shortening, self.channels = config.patch, config.shortening, channels
        self.rows = config.size[0] // config.patch
        self.modulation = Zero(config.width, 2 * config.width)
        self.project = Zero(config.width, channels * config.patch**2 * config.shortening)

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        """Return [B,C',H,W] of [B,J,D] and a condition [B,D] that its activation has passed."""
        p = self.patch
        x = self.project(modulated(x, *self.modulation(told).chunk(2, dim=1)))
        x = x.unflatten(2, (self.shortening, -1)).flatten(1, 2)  # [B,L,P P C']
        x = x.unflatten(2, (p, p, self.channels)).unflatten(1, (self.rows, -1))  # [B,H/P,W/P,P,P,C']
        return x.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def modulated(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Return the layer norm of x [B,J,D] times 1 + scale [B,D], plus shift [B,D]. [2] section 3.2"""
    return torch.addcmul(shift[:, None], F.layer_norm(x, x.shape[-1:], eps=EPS), 1 + scale[:, None])


def sincos(grid: tuple[int, int], width: int, shortening: int) -> Tensor:
    """Return the fixed positions [J,D] of a grid of rows and columns in raster order [2]: the mean of M positions.

    A half of the channels is of the column, the other of the row; of each, sines and then cosines, the fastest first.
    """
    rows, columns = grid
    frequencies = 10_000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    angles = [place.double()[:, None] * frequencies for place in (column, row)]
    table = torch.cat([f(x) for x in angles for f in (torch.sin, torch.cos)], dim=1)
    return table.unflatten(0, (-1, shortening)).mean(1).to(torch.get_default_dtype())

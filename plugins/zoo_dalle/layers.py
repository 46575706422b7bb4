"""The transformer's blocks: pre-norm attention and MLP branches, and the layers that stay in full precision.

Letters: B rows, L positions, D width, H heads, E head width.

The paper says "the same kind" of transformer as [2], and is silent on activation, biases and initialisation. Taken
from [2] and [3]: normalisation before each branch, GELU, biases everywhere, weights from N(0, 0.02) with those that
write to the residual stream scaled by 1/sqrt(number of branches), biases 0.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
[2] R. Child et al.: Generating Long Sequences with Sparse Transformers. arXiv:1904.10509
[3] A. Radford et al.: Language models are unsupervised multitask learners. 2019
[4] M. Ding et al.: CogView. arXiv:2105.13290, section 2.4
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.precision import full_precision
from zoo.nn.residual import Residual
from zoo_dalle.configs import DallePrior

STD = 0.02

Gelu = Literal["exact", "tanh"]
APPROXIMATE = {"exact": "none", "tanh": "tanh"}
"""torch's names of them."""

Attend = Callable[[Tensor], Tensor]
"""Queries, keys and values [B,L,3,H,E] to the heads' outputs [B,L,D], under one layer's mask."""

Sink = Callable[[Tensor, Tensor], None]
"""Takes a layer's keys and values [B,H,L,E]."""


class Linear(nn.Linear):
    """A linear layer; weights from N(0, std), bias 0."""

    def __init__(self, n_in: int, n_out: int, std: float = STD, *, bias: bool = True) -> None:
        super().__init__(n_in, n_out, bias=bias)
        nn.init.normal_(self.weight, std=std)
        if bias:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A table of learned rows from N(0, 0.02)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        nn.init.normal_(self.weight, std=STD)

    def rows(self) -> Tensor:
        """Return the whole table [rows,D], looked up, so that whoever partitions parameters sees the use."""
        return self(torch.arange(self.num_embeddings, device=self.weight.device))


class Norm(nn.LayerNorm):
    """The final norm, in full precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Return [...,D] in the gain's own precision."""
        with full_precision(x):
            return super().forward(x.to(self.weight.dtype))


class Head(Linear):
    """An unembedding, in full precision."""

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [...,classes] of normed states [...,D]."""
        with full_precision(x):
            return super().forward(x)


class Attention(nn.Module):
    """The attention branch: norm, queries, keys and values, one softmax over what the mask shows, projection."""

    def __init__(self, width: int, heads: int, std_out: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width, std_out)

    def forward(self, x_BLD: Tensor, attend: Attend, sink: Sink | None = None) -> Tensor:
        """Return [B,L,D]; `sink` is given the keys and values."""
        qkv = self.qkv(self.norm(x_BLD)).unflatten(2, (3, self.heads, -1))
        if sink is not None:
            sink(qkv[:, :, 1].transpose(1, 2), qkv[:, :, 2].transpose(1, 2))
        return self.out(attend(qkv))


class Mlp(nn.Module):
    """The MLP branch."""

    def __init__(self, width: int, hidden: int, std_out: float, gelu: Gelu) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width, std_out)
        self.approximate = APPROXIMATE[gelu]

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return [B,L,D]."""
        return self.down(F.gelu(self.up(self.norm(x_BLD)), approximate=self.approximate))


class Sandwich(nn.Module):
    """A branch whose result is normalised too, before it is added [4]."""

    def __init__(self, branch: nn.Module, width: int) -> None:
        super().__init__()
        self.inner = branch
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BLD: Tensor, *extra: Any) -> Tensor:
        """Return [B,L,D]."""
        return self.norm(self.inner(x_BLD, *extra))


class Block(nn.Module):
    """One layer: two residual sums."""

    def __init__(self, config: DallePrior) -> None:
        super().__init__()
        width, std_out = config.width, STD * (2 * config.depth) ** -0.5
        attention = Attention(width, config.heads, std_out)
        mlp = Mlp(width, config.mlp_ratio * width, std_out, config.gelu)
        sandwich = config.block == "sandwich"
        self.attention = Residual(Sandwich(attention, width) if sandwich else attention)
        self.mlp = Residual(Sandwich(mlp, width) if sandwich else mlp)

    def forward(self, x_BLD: Tensor, attend: Attend, sink: Sink | None = None) -> Tensor:
        """Return [B,L,D]."""
        return self.mlp(self.attention(x_BLD, attend, sink))

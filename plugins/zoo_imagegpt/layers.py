"""The transformer's blocks, as the released code has them: gains without biases, no mean subtracted [2].

Letters: B rows, L positions, D width, H heads, E head width.

[1] M. Chen et al.: Generative Pretraining from Pixels. ICML 2020
[2] github.com/openai/image-gpt, src/model.py
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.precision import full_precision
from zoo.nn.quick import quick_gelu
from zoo.nn.residual import Residual
from zoo.nn.rms import RmsNorm
from zoo_imagegpt.configs import ImageGptPrior

STD = 0.02
STD_POSITION = 0.01
EPS = 1e-5
"""Of the norms: what the released code calls layer norm takes no mean away and has no bias [2]."""

Sink = Callable[[Tensor, Tensor], None]
"""Takes a layer's keys and values [B,H,L,E]."""


def spread(weight: Tensor, std: float) -> None:
    """Fill a weight from N(0, std); on the meta device, where that takes milliseconds and does nothing, leave it."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


class Linear(nn.Linear):
    """A matrix from N(0, std), without a bias."""

    def __init__(self, n_in: int, n_out: int, std: float = STD) -> None:
        super().__init__(n_in, n_out, bias=False)
        spread(self.weight, std)


class Embedding(nn.Embedding):
    """A table of learned rows from N(0, std)."""

    def __init__(self, rows: int, width: int, std: float = STD) -> None:
        super().__init__(rows, width)
        spread(self.weight, std)

    def rows(self) -> Tensor:
        """Return the whole table [rows,D], looked up, so that whoever partitions parameters sees the use."""
        return self(torch.arange(self.num_embeddings, device=self.weight.device))


class Head(nn.Linear):
    """The unembedding, not tied to the embedding, which begins as zero: the first loss is ln K. In full precision."""

    def __init__(self, width: int, codes: int) -> None:
        super().__init__(width, codes, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [...,K] of normed states [...,D]."""
        with full_precision(x):
            return super().forward(x)


class Attention(nn.Module):
    """The attention branch: norm, queries, keys and values, softmax, projection."""

    def __init__(self, config: ImageGptPrior) -> None:
        super().__init__()
        width = config.width
        self.heads, self.causal = config.heads, config.objective == "ar"
        self.norm = RmsNorm(width, EPS)
        self.qkv = Linear(width, 3 * width, width**-0.5)
        self.out = Linear(width, width, (width * config.depth) ** -0.5)

    def forward(self, x_BLD: Tensor, sink: Sink | None = None) -> Tensor:
        """Return [B,L,D]; `sink` is given the keys and values."""
        q, k, v = self.qkv(self.norm(x_BLD)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        if sink is not None:
            sink(k, v)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The MLP branch."""

    def __init__(self, config: ImageGptPrior) -> None:
        super().__init__()
        hidden = config.mlp_ratio * config.width
        self.norm = RmsNorm(config.width, EPS)
        self.up = Linear(config.width, hidden)
        self.down = Linear(hidden, config.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return [B,L,D]."""
        return self.down(quick_gelu(self.up(self.norm(x_BLD))))


class Block(nn.Module):
    """One layer: two residual sums."""

    def __init__(self, config: ImageGptPrior) -> None:
        super().__init__()
        self.attention = Residual(Attention(config))
        self.mlp = Residual(Mlp(config))

    def forward(self, x_BLD: Tensor, sink: Sink | None = None) -> Tensor:
        """Return [B,L,D]."""
        return self.mlp(self.attention(x_BLD, sink))

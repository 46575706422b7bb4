"""The transformer's blocks, as the released code has them: gains without biases, no mean subtracted [2].

Letters: B rows, L positions, D width, H heads, E head width.

[1] M. Chen et al.: Generative Pretraining from Pixels. ICML 2020
[2] github.com/openai/image-gpt, src/model.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zoo.nn.precision import full_precision
from zoo.nn.residual import Residual
from zoo_imagegpt.configs import ImageGptPrior

STD = 0.02
STD_POSITION = 0.01
EPS = 1e-5
QUICK = 1.702
"""x * sigmoid(1.702 x), the activation [2], is silu(1.702 x) / 1.702, which keeps one tensor instead of two."""

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


class RootMeanSquare(torch.autograd.Function):
    """`F.rms_norm` for a CPU, where torch has no kernel of its own for it: four times faster in training than torch's
    several, and it keeps the input and a number a row, where they keep the result before the gain too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        rate = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(EPS).rsqrt_()
        ctx.save_for_backward(x, rate, gain)
        return (x * rate).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, rate, gain = ctx.saved_tensors
        product = (grad * x).flatten(0, -2)
        gain_grad = rate.view(1, -1).mm(product).view_as(gain)
        shrink = product.mv(gain).view_as(rate).mul_(rate**3).div_(x.shape[-1])
        return (grad * gain).mul_(rate).addcmul_(x, shrink, value=-1), gain_grad


class Norm(nn.Module):
    """x / sqrt(mean(x²) + 1e-5) * gain: what the released code calls layer norm. In full precision."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [...,D] in the gain's own precision."""
        with full_precision(x):
            x = x.to(self.weight.dtype)
            if x.device.type == "cpu" and x.dtype.itemsize >= 4:  # a square may be too large for less
                return RootMeanSquare.apply(x, self.weight)
            return F.rms_norm(x, self.weight.shape, self.weight, EPS)


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
        self.norm = Norm(width)
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
        self.norm = Norm(config.width)
        self.up = Linear(config.width, hidden)
        self.down = Linear(hidden, config.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return [B,L,D]."""
        hidden = F.silu(self.up(self.norm(x_BLD)) * QUICK)
        return self.down(hidden.mul_(1 / QUICK))  # in place: silu keeps what it was given, not what it made


class Block(nn.Module):
    """One layer: two residual sums."""

    def __init__(self, config: ImageGptPrior) -> None:
        super().__init__()
        self.attention = Residual(Attention(config))
        self.mlp = Residual(Mlp(config))

    def forward(self, x_BLD: Tensor, sink: Sink | None = None) -> Tensor:
        """Return [B,L,D]."""
        return self.mlp(self.attention(x_BLD, sink))

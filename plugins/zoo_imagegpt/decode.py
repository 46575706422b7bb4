"""Drawing codes one at a time from cached keys and values.

Every layer attends to all codes before, so a cache is one tensor in order, and a step reads its filled part. What a
step multiplies by a constant or a gain before a product is folded into the packed weights: a norm is then a division
by the root mean square, and the activation one kernel.

Letters: R rows (batch, twice that under guidance), N codes, D width, H heads, E head width, F hidden width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.precision import wide
from zoo.nn.quick import QUICK
from zoo.nn.rms import RmsNorm
from zoo.nn.rows import Product
from zoo_imagegpt.layers import EPS, Attention, Block, Mlp

if TYPE_CHECKING:
    from zoo.interfaces import Cond
    from zoo_imagegpt.model import ImageGptPrior


def folded(linear: nn.Linear, rows: int, norm: RmsNorm | None = None, scale: float = 1.0) -> Product:
    """Return a product that includes a factor, and the gain of the norm before it."""
    weight = linear.weight if norm is None else linear.weight * norm.weight
    return Product(weight if scale == 1 else weight * scale, rows)


def normed(x: Tensor, eps: Tensor) -> Tensor:
    """Return [R,D] over its rows' root mean squares, as `RmsNorm` without its gain, in fewer kernels."""
    size = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=eps.dtype)
    return x * torch.addcmul(eps, size, size, value=1 / x.shape[1]).rsqrt_().to(x.dtype)


class Cache:
    """One layer's keys and values."""

    def __init__(self, block: Block, rows: int, positions: int) -> None:
        attention = cast(Attention, block.attention.branch)
        heads, width = attention.heads, attention.out.in_features
        self.kv = attention.qkv.weight.new_empty(2, rows, heads, positions, width // heads)

    def keep(self, k: Tensor, v: Tensor) -> None:
        """Store keys and values [R,H,1+n,E] of the start vector and n given codes."""
        for kept, new in zip(self.kv, (k, v), strict=True):
            kept[:, :, : new.shape[2]] = new


def caches(prior: ImageGptPrior, rows: int, positions: int) -> list[Cache]:
    """Return one a layer, of so many positions."""
    return [Cache(block, rows, positions) for block in cast(list[Block], list(prior.blocks))]


def start(prior: ImageGptPrior, kept: list[Cache], codes: Tensor, cond: Cond) -> Tensor:
    """Read the condition and the given codes [R,n] in one pass; return logits [R,K] of code n."""
    states = prior.states(codes, cond, [cache.keep for cache in kept])
    logits: Tensor = prior.head(states[:, -1])
    return logits


class Layer:
    """One layer's packed weights."""

    def __init__(self, block: Block, cache: Cache, rows: int) -> None:
        attention, mlp = cast(Attention, block.attention.branch), cast(Mlp, block.mlp.branch)
        self.kv = cache.kv
        self.qkv, self.out = folded(attention.qkv, rows, attention.norm), folded(attention.out, rows)
        self.up, self.down = folded(mlp.up, rows, mlp.norm, QUICK), folded(mlp.down, rows, scale=1 / QUICK)


class Decoder:
    """All layers' caches, and a buffer that one step writes over the last one's.

    Residual sums are made in place here: nothing is differentiated, recomputed or scaled.
    """

    def __init__(self, prior: ImageGptPrior, rows: int) -> None:
        self.prior = prior
        self.caches = caches(prior, rows, prior.length)
        blocks = cast(list[Block], list(prior.blocks))
        self.layers = [Layer(block, cache, rows) for block, cache in zip(blocks, self.caches, strict=True)]
        self.head = folded(prior.head, rows, prior.norm)
        self.x = prior.head.weight.new_empty(rows, prior.config.width)
        self.eps = wide(self.x.new_full((1, 1), EPS))
        self.heads = rows, 3, prior.config.heads, prior.config.width // prior.config.heads

    def start(self, codes: Tensor, cond: Cond) -> Tensor:
        """Read the condition and the given codes [R,n] in one pass; return logits [R,K] of code n."""
        return start(self.prior, self.caches, codes, cond)

    def step(self, code: Tensor, i: int) -> Tensor:
        """Read code i [R]; return logits [R,K] of code i + 1."""
        x = self.x
        torch.index_select(self.prior.token.weight, 0, code, out=x)
        x.add_(self.prior.position.weight[i + 1])  # position 0 is the start vector's
        for layer in self.layers:
            qkv = layer.qkv(normed(x, self.eps)).view(self.heads)
            layer.kv.select(3, i + 1).copy_(qkv[:, 1:].transpose(0, 1))
            k, v = layer.kv[:, :, :, : i + 2].unbind()
            y = F.scaled_dot_product_attention(qkv[:, 0, :, None], k, v)
            layer.out.add_to(x, y.reshape(x.shape))
            hidden = layer.up(normed(x, self.eps))
            layer.down.add_to(x, F.silu(hidden, inplace=True))
        return self.head(normed(x, self.eps))

"""The cached step compiled: all layers as one graph, which reads as many slots as are filled.

Letters: R rows, n filled slots of a cache of N, D width, H heads, E head width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.precision import wide
from zoo.nn.quick import QUICK
from zoo.nn.rms import RmsNorm
from zoo_imagegpt.decode import caches, start
from zoo_imagegpt.layers import EPS, Attention, Block, Mlp

if TYPE_CHECKING:
    from zoo.interfaces import Cond
    from zoo_imagegpt.model import ImageGptPrior


class Step(nn.Module):
    """One code through all layers; the prior's own modules."""

    def __init__(self, prior: ImageGptPrior) -> None:
        super().__init__()
        self.token, self.position = prior.token, prior.position
        self.blocks, self.norm, self.head = prior.blocks, prior.norm, prior.head

    def forward(self, code: Tensor, filled: Tensor, kvs: list[Tensor]) -> Tensor:
        """Return logits [R,K] of the code after code [R], having filled the last of the slots filled [n]."""
        last = filled[-1:]
        x = F.embedding(code, self.token.weight) + F.embedding(last, self.position.weight)
        for block, kv in zip(self.blocks, kvs, strict=True):
            block = cast(Block, block)
            x = x + attended(cast(Attention, block.attention.branch), x, kv, last, filled.shape[0])
            x = x + fed(cast(Mlp, block.mlp.branch), x)
        return self.head(normed(self.norm, x))


def normed(norm: RmsNorm, x: Tensor) -> Tensor:
    """Return what the norm returns, in words that the compiler makes one loop of."""
    y = wide(x)
    return (y * (y.square().mean(-1, keepdim=True) + EPS).rsqrt() * norm.weight).to(x)


def attended(attention: Attention, x: Tensor, kv: Tensor, last: Tensor, n: int) -> Tensor:
    """Return the attention branch [R,D] of the residual stream [R,D], having stored its key and value in kv[:,last]."""
    qkv = attention.qkv(normed(attention.norm, x)).view(len(x), 3, attention.heads, 1, -1)
    kv.index_copy_(3, last, qkv[:, 1:].transpose(0, 1))
    q, (k, v) = qkv[:, 0], kv[:, :, :, :n]
    # Spelled out: of the fused call, and of products, the compiler makes calls and not loops.
    scores = wide((q * k).sum(-1)) * q.shape[-1] ** -0.5
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    y = (weights.to(v)[..., None] * v).sum(2) / weights.sum(-1, keepdim=True).to(v)
    return attention.out(y.flatten(1))


def fed(mlp: Mlp, x: Tensor) -> Tensor:
    """Return the MLP branch [R,D] of the residual stream [R,D]."""
    hidden = mlp.up(normed(mlp.norm, x))
    return mlp.down(hidden * torch.sigmoid(hidden * QUICK))


class CompiledDecoder:
    """A decoder whose step is compiled."""

    def __init__(self, prior: ImageGptPrior, rows: int) -> None:
        self.prior = prior
        # One slot more than is ever filled: a graph for any part of the cache would not do for all of it, whose memory
        # is in one piece.
        self.caches = caches(prior, rows, prior.length + 1)
        self.kvs = [cache.kv for cache in self.caches]
        with torch.inference_mode(False):  # a graph of slices of the one kind takes none of the other
            self.places = torch.arange(prior.length, device=prior.head.weight.device)
        self.run = prior.frozen.step(rows, prior, lambda: Step(prior))

    def start(self, codes: Tensor, cond: Cond) -> Tensor:
        """Read the condition and the given codes [R,n] in one pass; return logits [R,K] of code n."""
        return start(self.prior, self.caches, codes, cond)

    def step(self, code: Tensor, i: int) -> Tensor:
        """Read code i [R]; return logits [R,K] of code i + 1."""
        filled = self.places[: i + 2]  # slot 0 is the start vector's
        torch._dynamo.maybe_mark_dynamic(filled, 0)
        return self.run(code, filled, self.kvs)

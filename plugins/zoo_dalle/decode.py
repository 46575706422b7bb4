"""Drawing codes one at a time from cached keys and values.

Each layer keeps what its mask can still ask for, in the order in which it asks, so that a step reads one or two
slices and never a mask. One softmax does not care for the order of its keys: a row layer keeps its window as a ring.

Letters: R rows (batch, twice that under guidance), P prefix positions, N codes, S slots, D width, H heads, E head
width, F hidden width of the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.rows import Product, product
from zoo.parts import Grid
from zoo_dalle.configs import Kind, reach, seen
from zoo_dalle.layers import Attention, Block, Mlp, Sandwich

if TYPE_CHECKING:
    from zoo.interfaces import Cond
    from zoo_dalle.model import DallePrior


class Slots(Protocol):
    """Where one layer keeps its keys: prefix position p in slot p, code i in slot(i)."""

    prefix: int
    """Prefix positions, P."""
    count: int
    """Slots, S."""

    def slot(self, i: int) -> int:
        """Return the slot of code i."""

    def oldest(self, i: int) -> int:
        """Return the first code that code i or a later one can ask for."""

    def read(self, kv: Tensor, i: int) -> Tensor:
        """Return what code i sees, [2,R,H,s,E], of the cache [2,R,H,S,E]."""

    def reads(self, i: int) -> list[int]:
        """Return the slots of what code i sees."""


class Ring:
    """The last `window` codes."""

    def __init__(self, prefix: int, codes: int, window: int) -> None:
        self.prefix, self.window = prefix, min(window, codes)
        self.count = prefix + self.window

    def slot(self, i: int) -> int:
        return self.prefix + i % self.window

    def oldest(self, i: int) -> int:
        return max(0, i + 1 - self.window)

    def read(self, kv: Tensor, i: int) -> Tensor:
        return kv if i + 1 >= self.window else kv[:, :, :, : self.prefix + i + 1]

    def reads(self, i: int) -> list[int]:
        return list(range(min(self.count, self.prefix + i + 1)))


class Columns:
    """The codes above in the same column; a column lies in one piece."""

    def __init__(self, prefix: int, grid: Grid) -> None:
        self.prefix, (self.rows, self.columns) = prefix, grid
        self.count = prefix + self.rows * self.columns

    def slot(self, i: int) -> int:
        return self.prefix + i % self.columns * self.rows + i // self.columns

    def oldest(self, i: int) -> int:
        return 0

    def read(self, kv: Tensor, i: int) -> Tensor:
        last = self.slot(i)
        if i % self.columns == 0:
            return kv[:, :, :, : last + 1]
        first = last - i // self.columns
        return torch.cat((kv[:, :, :, : self.prefix], kv[:, :, :, first : last + 1]), 3)

    def reads(self, i: int) -> list[int]:
        last = self.slot(i)
        return [*range(self.prefix), *range(last - i // self.columns, last + 1)]


class Scattered:
    """Any other choice of codes, gathered."""

    def __init__(self, prefix: int, codes: Sequence[Sequence[int]], device: torch.device) -> None:
        self.prefix, self.count = prefix, prefix + len(codes)
        index = [[*range(prefix), *(prefix + code for code in row)] for row in codes]
        flat = torch.tensor([slot for row in index for slot in row], device=device)
        self.index = flat.split([len(row) for row in index])

    def slot(self, i: int) -> int:
        return self.prefix + i

    def oldest(self, i: int) -> int:
        return 0

    def read(self, kv: Tensor, i: int) -> Tensor:
        return kv.index_select(3, self.index[i])

    def reads(self, i: int) -> list[int]:
        return self.index[i].tolist()


def slots(kind: Kind, prefix: int, grid: Grid, kernel: int, device: torch.device) -> Slots:
    """Return the plan of a layer."""
    if kind == "column":
        return Columns(prefix, grid)
    codes, before = grid[0] * grid[1], reach(kind, grid, kernel)
    rows = [seen(kind, grid, kernel, i) for i in range(codes)]
    if all(len(row) == min(i, before) + 1 for i, row in enumerate(rows)):  # no gaps: the last codes
        return Ring(prefix, codes, before + 1)
    return Scattered(prefix, rows, device)


def normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Return what the norm returns, without a module call's overhead."""
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def opened(branch: nn.Module) -> tuple[nn.Module, nn.LayerNorm | None]:
    """Return a branch, and the norm of its result where it has one."""
    return (branch.inner, branch.norm) if isinstance(branch, Sandwich) else (branch, None)


class Cache:
    """One layer's keys and values."""

    def __init__(self, block: Block, plan: Slots, rows: int) -> None:
        attention = cast(Attention, opened(block.attention.branch)[0])
        heads, width = attention.heads, attention.out.in_features
        self.plan = plan
        self.kv = attention.qkv.weight.new_empty(2, rows, heads, plan.count, width // heads)

    def keep(self, k: Tensor, v: Tensor) -> None:
        """Store keys and values [R,H,P+n,E] of the prefix and n given codes."""
        plan = self.plan
        prefix = plan.prefix
        given = k.shape[2] - prefix
        codes = range(plan.oldest(given - 1) if given else 0, given)
        where = torch.tensor([plan.slot(i) for i in codes], dtype=torch.int64, device=k.device)
        for kept, new in zip(self.kv, (k, v), strict=True):
            kept[:, :, :prefix] = new[:, :, :prefix]
            kept.index_copy_(2, where, new[:, :, prefix + codes.start :].contiguous())


def caches(prior: DallePrior, rows: int) -> list[Cache]:
    """Return one a layer."""
    (grid,) = prior.grids
    device, kernel = prior.head.weight.device, prior.config.conv_kernel
    plans = {kind: slots(kind, prior.prefix.length, grid, kernel, device) for kind in {*prior.kinds}}
    return [Cache(block, plans[kind], rows) for block, kind in zip(blocks(prior), prior.kinds, strict=True)]


def blocks(prior: DallePrior) -> list[Block]:
    """Return the layers."""
    return cast(list[Block], list(prior.blocks))


def start(prior: DallePrior, kept: list[Cache], codes: Tensor, cond: Cond) -> Tensor:
    """Read the condition and the given codes [R,n] in one pass; return logits [R,K] of code n."""
    states = prior.states(codes, cond, [cache.keep for cache in kept])
    logits: Tensor = prior.head(states[:, -1])
    return logits


class Layer:
    """One layer's packed weights."""

    def __init__(self, block: Block, cache: Cache, rows: int) -> None:
        attention, after_attention = opened(block.attention.branch)
        mlp, after_mlp = opened(block.mlp.branch)
        attention, mlp = cast(Attention, attention), cast(Mlp, mlp)
        self.plan, self.kv = cache.plan, cache.kv
        self.norms = attention.norm, mlp.norm
        self.sandwich = None if after_attention is None or after_mlp is None else (after_attention, after_mlp)
        self.approximate = mlp.approximate
        self.qkv, self.out = product(attention.qkv, rows), product(attention.out, rows)
        self.up, self.down = product(mlp.up, rows), product(mlp.down, rows)

    def add(self, x: Tensor, y: Tensor, made: Product, branch: int) -> None:
        """Add a branch's last product to the residual stream [R,D], in place."""
        if self.sandwich is None:
            made.add_to(x, y)
        else:
            x.add_(normed(self.sandwich[branch], made(y)))


class Decoder:
    """All layers' caches, and a buffer that one step writes over the last one's.

    Residual sums are made in place here: nothing is differentiated, recomputed or scaled.
    """

    def __init__(self, prior: DallePrior, rows: int) -> None:
        self.prior = prior
        self.caches = caches(prior, rows)
        self.layers = [Layer(block, cache, rows) for block, cache in zip(blocks(prior), self.caches, strict=True)]
        self.positions = prior.codes.positions()
        self.norms = [module for module in prior.norm.modules() if isinstance(module, nn.LayerNorm)]
        self.head = product(prior.head, rows)
        self.x = prior.head.weight.new_empty(rows, prior.config.width)
        self.heads = rows, 3, prior.config.heads, prior.config.width // prior.config.heads

    def start(self, codes: Tensor, cond: Cond) -> Tensor:
        """Read the condition and the given codes [R,n] in one pass; return logits [R,K] of code n."""
        return start(self.prior, self.caches, codes, cond)

    def step(self, code: Tensor, i: int) -> Tensor:
        """Read code i [R]; return logits [R,K] of code i + 1."""
        x = self.x
        torch.index_select(self.prior.codes.token.weight, 0, code, out=x)
        x.add_(self.positions[i])
        for layer in self.layers:
            norm_attention, norm_mlp = layer.norms
            qkv = layer.qkv(normed(norm_attention, x)).view(self.heads)
            layer.kv.select(3, layer.plan.slot(i)).copy_(qkv[:, 1:].transpose(0, 1))
            k, v = layer.plan.read(layer.kv, i).unbind()
            y = F.scaled_dot_product_attention(qkv[:, 0, :, None], k, v).reshape(x.shape)
            layer.add(x, y, layer.out, 0)
            hidden = layer.up(normed(norm_mlp, x))
            layer.add(x, F.gelu(hidden, approximate=layer.approximate), layer.down, 1)
        for norm in self.norms:
            x = normed(norm, x)
        return self.head(x)

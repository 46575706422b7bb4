"""The cached step compiled: all layers as one graph, of the same shapes at every code.

`zoo_dalle.decode` reads slices whose lengths grow with the code; here each layer reads as many slots at every code as
it ever needs, from a table, and a bias hides those that are not filled yet or belong to another. A graph is made at the
first codes drawn (seconds a layer), and serves all later samples of as many rows.

Letters: R rows, N codes, S slots of a cache, s of them read at a step, D width, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.precision import wide
from zoo_dalle.decode import Slots, caches, normed, opened, start
from zoo_dalle.layers import Attention, Block

if TYPE_CHECKING:
    from zoo.interfaces import Cond
    from zoo_dalle.model import DallePrior


class Table(nn.Module):
    """What the layers of one kind write and read at each code."""

    slot: Tensor
    index: Tensor | None
    bias: Tensor

    def __init__(self, plan: Slots, codes: int, like: Tensor) -> None:
        super().__init__()
        rows = [plan.reads(i) for i in range(codes)]
        width = max(map(len, rows))
        seen, index = torch.zeros(codes, width, dtype=torch.bool), None
        if width == plan.count:  # all slots in order
            for i, row in enumerate(rows):
                seen[i, row] = True
        else:
            index = torch.tensor([row + row[:1] * (width - len(row)) for row in rows], device=like.device)
            for i, row in enumerate(rows):
                seen[i, : len(row)] = True
        bias = torch.zeros(seen.shape).masked_fill(~seen, float("-inf"))
        slot = torch.tensor([plan.slot(i) for i in range(codes)], device=like.device)
        self.register_buffer("slot", slot, persistent=False)  # [N]
        self.register_buffer("index", index, persistent=False)  # [N,s], or None
        self.register_buffer("bias", bias.to(like.device), persistent=False)  # [N,s], added to the scores

    def forward(self, qkv: Tensor, kv: Tensor, i: Tensor) -> Tensor:
        """Return the heads' outputs [R,H*E] for [R,3,H,1,E], having stored keys and values in kv [2,R,H,S,E].

        The products and the softmax are spelled out, so that the compiler makes a loop or two of them.
        """
        q, new = qkv[:, 0], qkv[:, 1:].transpose(0, 1)
        kv.index_copy_(3, self.slot[i], new)
        k, v = kv if self.index is None else kv.index_select(3, self.index[i].squeeze(0))
        scores = wide(q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 + self.bias[i]
        return (scores.softmax(-1).to(v) @ v).flatten(1)


class Step(nn.Module):
    """One code through all layers; the prior's own modules, and tables."""

    positions: Tensor

    def __init__(self, prior: DallePrior, plans: Sequence[Slots]) -> None:
        super().__init__()
        tables = {id(plan): Table(plan, prior.length, prior.head.weight) for plan in plans}
        self.tables = nn.ModuleList(tables[id(plan)] for plan in plans)
        self.token, self.norm, self.head, self.blocks = prior.codes.token, prior.norm, prior.head, prior.blocks
        self.register_buffer("positions", prior.codes.positions(), persistent=False)

    def forward(self, code: Tensor, i: Tensor, kvs: list[Tensor]) -> Tensor:
        """Return logits [R,K] of code i + 1 for code i [R]; i is [1]."""
        x = F.embedding(code, self.token.weight) + self.positions[i]
        for block, table, kv in zip(self.blocks, self.tables, kvs, strict=True):
            block = cast(Block, block)
            attention, after = opened(block.attention.branch)
            y = attended(cast(Attention, attention), cast(Table, table), x, kv, i)
            x = x + (y if after is None else after(y))
            x = x + block.mlp.branch(x)
        for norm in self.norm.modules():
            if isinstance(norm, nn.LayerNorm):
                x = normed(norm, x)
        return F.linear(x, self.head.weight, self.head.bias)


def attended(attention: Attention, table: Table, x: Tensor, kv: Tensor, i: Tensor) -> Tensor:
    """Return the attention branch [R,D] of the residual stream [R,D]."""
    qkv = attention.qkv(attention.norm(x)).view(len(x), 3, attention.heads, 1, -1)
    made: Tensor = attention.out(table(qkv, kv, i))
    return made


class CompiledDecoder:
    """A decoder whose step is compiled."""

    def __init__(self, prior: DallePrior, rows: int) -> None:
        self.prior = prior
        self.caches = caches(prior, rows)
        self.kvs = [cache.kv.zero_() for cache in self.caches]  # slots not filled yet are read, if weighed by 0
        self.places = torch.arange(prior.length, device=prior.head.weight.device)[:, None]
        self.run = prior.frozen.step(rows, prior, lambda: Step(prior, [cache.plan for cache in self.caches]))

    def start(self, codes: Tensor, cond: Cond) -> Tensor:
        """Read the condition and the given codes [R,n] in one pass; return logits [R,K] of code n."""
        return start(self.prior, self.caches, codes, cond)

    def step(self, code: Tensor, i: int) -> Tensor:
        """Read code i [R]; return logits [R,K] of code i + 1."""
        return self.run(code, self.places[i], self.kvs)

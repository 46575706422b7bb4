"""Sums and gathers over the whole global batch, for parts that look across it.

In one process each is the identity. The engine sets the group; a part never asks about ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

_group: Any = None
_active = False


def set_group(group: Any, *, active: bool = True) -> None:
    """Name the process group that sums and gathers run over (the engine calls this once)."""
    global _group, _active
    _group, _active = group, active


def sum(x: Tensor) -> Tensor:
    """Return the sum of `x` over all ranks, without gradient."""
    if not _active:
        return x
    total = x.detach().clone()
    dist.all_reduce(total, group=_group)
    return total


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(_group))]
        dist.all_gather(parts, x.contiguous(), group=_group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        total = grad.contiguous()
        dist.all_reduce(total, group=_group)
        start = dist.get_rank(_group) * ctx.rows
        return total[start : start + ctx.rows]


def gather(x: Tensor) -> Tensor:
    """Return the rows of all ranks, in rank order, with gradient; every rank must hold as many rows."""
    return _Gather.apply(x) if _active else x

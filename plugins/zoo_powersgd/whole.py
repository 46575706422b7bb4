"""Gradients that are sent as they are, in one all-reduce, and norms."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo_powersgd.exchange import Exchange


def average_whole(tensors: list[Tensor], flags: Tensor | None, exchange: Exchange) -> list[float]:
    """Average tensors over the ranks, in place, and return the sums of the ranks' flags [n].

    One flat all-reduce carries both, in the widest type among them, so that flags cost a few bytes and no latency.
    """
    pieces = [x.reshape(-1) for x in tensors] + ([] if flags is None else [flags])
    if pieces and exchange.size > 1:
        sums = exchange.sum_(torch.cat(pieces)).split([len(x) for x in pieces])
        for tensor, part in zip(tensors, sums, strict=False):
            torch.div(part.view(tensor.shape), exchange.size, out=tensor)
        flags = None if flags is None else sums[-1]
    return [] if flags is None else flags.tolist()


def norms_squared(tensors: list[Tensor]) -> list[float]:
    """Return the sum of the squares of each tensor; inf or NaN where a value is."""
    if not tensors:
        return []
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(tensors)])
    return norms.square().tolist()


def flag(tensors: list[Tensor]) -> Tensor | None:
    """Return 1 for each tensor that holds a value that is not finite, else 0: fp32 [n]; None of none."""
    if not tensors:
        return None
    return torch.stack([x.isfinite().all().logical_not() for x in tensors]).float()

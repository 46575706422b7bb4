"""The collectives of a reduction, in the order in which they are called, and what they send.

Every rank calls the same ones in the same order, whatever its gradients hold: no call depends on what a rank alone
knows. What is counted is payload: the bytes of each buffer that a rank puts in to be summed, once, whatever way the
backend takes (a ring moves 2 (n - 1)/n times as many).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


class Exchange:
    """One group's collectives.

    Args:
        group: a process group; None: this process is alone.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.size = 1 if group is None else dist.get_world_size(group)
        self.sent = 0
        """Payload so far, in bytes."""

    def sum_(self, flat: Tensor) -> Tensor:
        """Sum a contiguous tensor over the ranks, in place; the answer is the same on each to the bit."""
        self.sent += flat.numel() * flat.element_size()
        dist.all_reduce(flat, group=self._group)
        return flat

    def swap(self, rows: Tensor) -> Tensor:
        """Send row i of [size, n] to rank i; return the rows received, by sender. Any type of fixed width."""
        self.sent += rows.numel() * rows.element_size()
        received = torch.empty_like(rows)
        dist.all_to_all_single(_bytes(received), _bytes(rows), group=self._group)
        return received

    def collect(self, row: Tensor) -> Tensor:
        """Return every rank's row, [size, n]: the second half of an all-reduce whose payload `swap` has counted."""
        rows = row.new_empty(self.size, len(row))
        dist.all_gather([_bytes(part) for part in rows], _bytes(row), group=self._group)
        return rows


def _bytes(x: Tensor) -> Tensor:
    """Return a view as bytes: backends know few 16-bit types, and these are only moved."""
    return x.view(torch.uint8)

"""Which gradients are compressed, to which factors, and what that sends. Imports no torch.

The reducers and the planner ask here alike, so that what is planned is what is sent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal, Protocol

import attrs

from zoo.interfaces import Shard, Traffic

FP32 = 4
"""Bytes of a value that is sent whole, and of a flag."""


class Choice(Protocol):
    """The settings that decide what is compressed."""

    @property
    def min_elements(self) -> int: ...

    @property
    def min_saving(self) -> float: ...

    def ranks(self, width: int) -> tuple[int, ...]: ...


@attrs.frozen
class LowRank:
    """A shard as a matrix, and the rank of its factors P [p,rank] and Q [q,rank], p <= q."""

    rows: int
    columns: int
    rank: int

    @property
    def transposed(self) -> bool:
        """True where M is the transposed shard, so that P, which is made orthonormal, has the smaller side."""
        return self.rows > self.columns

    @property
    def p(self) -> int:
        """Rows of P."""
        return min(self.rows, self.columns)

    @property
    def q(self) -> int:
        """Rows of Q."""
        return max(self.rows, self.columns)

    @property
    def elements(self) -> int:
        """Values of the shard."""
        return self.rows * self.columns


def low_rank(choice: Choice, shard: Shard) -> LowRank | None:
    """Return how a shard is compressed, or None where it is sent whole.

    A tensor of more than two axes is the matrix [first axis, all others]. A shard that is not a matrix (a flat one
    that ends within a row), one with no values, and one that would save too little are sent whole.
    """
    elements = math.prod(shard.local)
    if not shard.matrix or len(shard.shape) < 2 or elements < choice.min_elements or elements == 0:
        return None
    sides = shard.shape[0], math.prod(shard.shape[1:])
    # The side that is not sharded is whole; the other is what is left of it.
    rows, columns = (elements // sides[1], sides[1]) if not shard.axis else (sides[0], elements // sides[0])
    if rows * columns != elements:
        return None
    shards = -(-math.prod(shard.shape) // elements)
    for whole in choice.ranks(min(sides)):
        rank = min(-(-whole // shards), rows, columns)
        if (rows + columns) * rank * choice.min_saving < elements:
            return LowRank(rows, columns, rank)
    return None


def traffic(
    choice: Choice, shards: Iterable[Shard], ranks: int, *, width: int, flags: Literal["one", "each"],
    padded: bool = False,
) -> Traffic:  # fmt: skip
    """Return what one rank of a group of `ranks` sends in a step.

    Args:
        choice: the reducer's settings.
        shards: every gradient this rank reduces.
        ranks: ranks that hold the same shards; one alone sends nothing.
        width: bytes of a value of a factor.
        flags: one for all matrices together, or one each.
        padded: a buffer of factors is filled up to a multiple of `ranks`.
    """
    if ranks <= 1:
        return Traffic(matrices=0, matrices_dense=0, rest=0, start_up=0)
    p = q = compressed = whole = count = 0
    for shard in shards:
        low = low_rank(choice, shard)
        if low is None:
            whole += math.prod(shard.local)
            continue
        p, q = p + low.p * low.rank, q + low.q * low.rank
        compressed, count = compressed + low.elements, count + 1
    if padded:
        p, q = (-(-side // ranks) * ranks for side in (p, q))
    return Traffic(
        matrices=width * (p + q),
        matrices_dense=width * compressed,
        rest=FP32 * (whole + (min(count, 1) if flags == "one" else count)),
        start_up=FP32 * (whole + compressed),
    )

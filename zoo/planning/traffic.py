"""What the devices send each other in one update. Imports no torch.

Bytes are payload, those of a collective's buffer, counted once on every device that takes part: the whole parameter of
an all-gather, the whole gradient of a reduce-scatter, the buffer of an all-reduce. A ring of n moves (n - 1)/n of it
over each link, an all-reduce twice that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import attrs

from zoo.cost import Cost, Weight
from zoo.interfaces import Shard, Traffic
from zoo.planning.jobs import Job

Kind = Literal["gather", "scatter", "all-reduce"]


@attrs.frozen(kw_only=True)
class Transfer:
    """All collectives of one kind in one update, of one device."""

    kind: Kind
    ranks: int
    between: bool
    """True where its ranks are on several machines."""
    dense: int
    """Payload without compression, bytes."""
    sent: int
    """Payload, bytes."""

    @property
    def wire(self) -> float:
        """Bytes that one device puts on its link, in a ring."""
        return self.sent * (self.ranks - 1) / self.ranks * (2 if self.kind == "all-reduce" else 1)


def shards_of(cost: Cost, job: Job) -> Iterator[Shard]:
    """Yield every gradient as the reducer of a device meets it, in the order of the parameters.

    This zoo's shards are DeepSpeed's, flat runs of the rows. The paper shards the longer side of a matrix, and queries,
    keys and values are matrices of their own there (arXiv:2102.12092, table 2).
    """
    for weight in cost.weights:
        matrix = cost.is_matrix(weight)
        if job.half and matrix:
            yield from _longer_side(weight, job.shards)
            continue
        if job.shards == 1:
            yield Shard(shape=weight.shape, local=weight.shape, axis=None, matrix=matrix)
        else:
            yield Shard(shape=weight.shape, local=(-(-weight.numel // job.shards),), axis=0, matrix=matrix)


def _longer_side(weight: Weight, shards: int) -> Iterator[Shard]:
    rows, columns = weight.shape[0] // weight.stacked, weight.numel // weight.shape[0]
    axis = 0 if rows >= columns else 1
    local = (-(-rows // shards), columns) if axis == 0 else (rows, -(-columns // shards))
    for _ in range(weight.stacked):
        yield Shard(shape=(rows, columns), local=local, axis=axis, matrix=True)


def reduced(cost: Cost, job: Job, reducer: Any) -> Traffic | None:
    """Return what a reducer sends between the copies of a shard; None where there is no reducer, or one copy.

    Args:
        cost, job: what is trained and how.
        reducer: its config, which has `cost(shards, ranks)`; None: none.
    """
    if reducer is None or job.copies == 1:
        return None
    return reducer.cost(shards_of(cost, job), job.copies)


def transfers(cost: Cost, job: Job, less: Traffic | None = None) -> list[Transfer]:
    """Return what one device sends in one update; `less` is what a reducer makes of the gradients."""
    matrices = sum(w.numel for w in cost.weights if cost.is_matrix(w))
    # The paper keeps embeddings, heads, gains and biases in fp32; DeepSpeed has one type for all.
    params = (
        2 * matrices + 4 * (cost.params - matrices) if job.storage == "paper" else (2 if job.half else 4) * cost.params
    )
    spans = job.group > job.per_node
    found: list[Transfer] = []
    if job.zero == 3:
        # Gathered for the forward pass and for the backward pass; recomputed branches are there for the latter.
        found.append(_same("gather", job.group, spans, 2 * job.accumulate * params))
        found.append(_same("scatter", job.group, spans, job.accumulate * params))
    elif job.zero > 0:
        times = job.accumulate if job.zero == 2 else 1
        found.append(_same("scatter", job.group, spans, times * params))
        found.append(_same("gather", job.group, spans, params))
    if job.copies > 1:
        found.append(_means(cost, job, less))
    return [transfer for transfer in found if transfer.ranks > 1]


def _means(cost: Cost, job: Job, less: Traffic | None) -> Transfer:
    """The mean over the copies of a shard, once an update: this zoo's in fp32, else matrices in 16 bits."""
    if less is not None:
        dense, sent = less.dense, less.sent
    elif job.zero in (1, 2):  # all parameters end to end, then cut
        dense = sent = 4 * -(-cost.params // job.group)
    else:
        width = 2 if job.half else 4
        dense = sent = sum((width if x.matrix else 4) * math.prod(x.local) for x in shards_of(cost, job))
    return Transfer(kind="all-reduce", ranks=job.copies, between=job.machines > 1, dense=dense, sent=sent)


def _same(kind: Kind, ranks: int, between: bool, payload: int) -> Transfer:
    return Transfer(kind=kind, ranks=ranks, between=between, dense=payload, sent=payload)

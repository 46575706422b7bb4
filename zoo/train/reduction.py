"""From every process's gradients to one decision: the mean between copies, the whole norm, made or skipped.

What an engine does with them at the end of an update is in `zoo.train.ending`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor
from torch import distributed as dist

from zoo import registry
from zoo.interfaces import Grad, Reduced, Reducer, Shard, Traffic
from zoo.planning.buckets import MEAN
from zoo.specs import locate
from zoo.train.copies import Copies
from zoo.train.shards import Piece, Shards, whole

ERROR = "error/"
"""Begins the names of a reducer's state that hold a gradient not applied yet."""


class Mean:
    """The plain mean, in fp32: what there is without a reducer."""

    @torch.no_grad()
    def reduce(self, grads: Iterable[Grad], group: Any) -> Reduced:
        """Average over a group, in place."""
        tensors, sent = [grad.tensor for grad in grads], 0
        if group is not None:
            for bucket in _buckets(tensors):
                flat = torch.cat([x.reshape(-1) for x in bucket])
                dist.all_reduce(flat, group=group)
                sent += flat.numel() * flat.element_size()
                flat.div_(dist.get_world_size(group))
                for x, mean in zip(bucket, flat.split([x.numel() for x in bucket]), strict=True):
                    x.copy_(mean.view(x.shape))
        squared = norm_squared(tensors)
        return Reduced(squared, math.isfinite(squared), sent=sent)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: it remembers nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""

    def cost(self, shards: Iterable[Shard], ranks: int) -> Traffic:
        """Return what `reduce` sends: every value, 4 bytes."""
        values = sum(math.prod(shard.local) for shard in shards) if ranks > 1 else 0
        return Traffic(matrices=0, matrices_dense=0, rest=4 * values, start_up=4 * values)


def _buckets(tensors: list[Tensor]) -> Iterable[list[Tensor]]:
    """Yield the tensors in order, as many at a time as hold `MEAN` values, or one that holds more."""
    bucket: list[Tensor] = []
    held = 0
    for x in tensors:
        if bucket and held + x.numel() > MEAN:
            yield bucket
            bucket, held = [], 0
        bucket.append(x)
        held += x.numel()
    if bucket:
        yield bucket


def norm_squared(tensors: list[Tensor]) -> float:
    """Return the sum of the squares of all values; inf or NaN where one is."""
    if not tensors:
        return 0.0
    norms = torch.stack([x.double() for x in torch._foreach_norm(tensors)])
    return float(norms.square().sum())


def make_reducer(options: Any) -> Reducer:
    """Return the reducer that `options.reducer` asks for, the plain mean without one.

    Raises:
        UnknownName, ConfigError: no such reducer, or no such setting.
    """
    if options.reducer is None:
        return Mean()
    return locate(registry.reducer(options.reducer).build)(options)


@attrs.frozen
class Outcome:
    """What all processes know of an update; alike on each."""

    norm: float
    """Of the whole mean gradient, before clipping; inf where a value is not finite."""
    loss: bool
    """Whether every process's losses were finite."""
    sent: int
    """Payload bytes that this process put into the reduction between copies."""
    decompress: Callable[[bool], None]
    """Called once when it is known whether the update is made."""

    @property
    def finite(self) -> bool:
        """Whether the update can be made."""
        return self.loss and math.isfinite(self.norm)


def reduce(reducer: Reducer, grads: list[Grad], copies: Copies, finite_loss: Tensor, *, alike: bool) -> Outcome:
    """Reduce gradients between copies, in place, and agree on what came of it.

    Args:
        reducer: averages over the processes that hold the same shard.
        grads: what this process holds, in one order on every process.
        copies: this process's place.
        finite_loss: scalar bool, this process's losses were finite.
        alike: the processes of a copy all hold the whole gradient.
    """
    reduced = reducer.reduce(grads, copies.between)
    # Every copy has the same mean, and where nothing is sharded every process of it has all.
    holders = copies.count * (copies.shards if alike else 1)
    found = torch.tensor([reduced.norm_squared / holders, 0.0], dtype=torch.float64, device=finite_loss.device)
    found[1] = (~finite_loss).double()
    if copies.count * copies.shards > 1:
        dist.all_reduce(found)
    squared, lost = found.tolist()
    norm = math.sqrt(squared) if math.isfinite(squared) else math.inf
    return Outcome(norm, lost == 0, reduced.sent, reduced.decompress or (lambda applied: None))


def any_process(flags: Tensor, world: Any) -> Tensor:
    """Return bool flags, True where they are on any process."""
    if world.size == 1:
        return flags
    most = flags.to(torch.int32)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return most.bool()


def blame(grads: Iterable[Grad], world: Any) -> str:
    """Return which block's gradient is not finite on any process, in words; "" where none is."""
    bad = {grad.block or grad.name for grad in grads if not torch.isfinite(grad.tensor).all()}
    where = sorted({name for found in world.gather(bad) for name in found})
    return f"{where[0]} and {len(where) - 1} more" if where[1:] else "".join(where)


Span = Callable[[str], tuple[int, int]]
"""Parameter's name -> first value and one past the last that a process holds of it, flattened."""


def state_pieces(reducer: Reducer, copies: Copies, span: Span, shape: Callable[[str], Any]) -> dict[str, Piece]:
    """Return a reducer's state as pieces of a checkpoint; all processes call this, the first copy's write theirs.

    Error feedback is saved as runs of whole gradients, for any number of shards to take up; the rest as it is, for the
    same shard of as many.
    """
    found = {}
    for key, x in reducer.state_dict().items():
        if key.startswith(ERROR):
            name = key.removeprefix(ERROR)
            found[f"error:{name}"] = Piece(x.reshape(-1), span(name)[0], tuple(shape(name)))
        else:
            found[f"reducer:{copies.shard}/{copies.shards}/{key}"] = whole(x)
    return found


def state_from(found: Shards, copies: Copies, span: Span) -> dict[str, Tensor]:
    """Return the state for a reducer of this shard, empty where the checkpoint has none.

    Of another number of shards only single numbers (counters) are of use beside the error feedback.
    """
    mine, first = f"{copies.shard}/{copies.shards}/", next(iter(found.names("reducer")), "")
    same = any(name.startswith(mine) for name in found.names("reducer"))
    prefix = mine if same else first[: first.find("/", first.find("/") + 1) + 1]
    state: dict[str, Tensor] = {}
    for name in found.names("reducer"):
        if name.startswith(prefix) and (same or not found.shapes[f"reducer:{name}"]):
            state[name.removeprefix(prefix)] = found.tensor(name, "reducer")
    for name in found.names("error"):
        state[f"{ERROR}{name}"] = found.read(f"error:{name}", *span(name), gaps=True)
    return state


def clip(tensors: list[Tensor], norm: float, most: float | None) -> None:
    """Scale gradients of a norm beyond `most` down to it, in place."""
    if most is not None and norm > most:
        torch._foreach_mul_(tensors, most / (norm + 1e-6))


def total_sent(rows: Iterable[Mapping[str, Any]]) -> int:
    """Return the bytes that the rows of a `metrics.jsonl` say were sent between copies."""
    return int(sum(row.get("sent") or 0 for row in rows))

"""How the processes of a run are divided: some share one copy of the model in shards, copies average between them.

    rank          0 1 2 3 | 4 5 6 7        --per-node 4 --zero 3
    a copy        0 1 2 3   4 5 6 7        shards of one copy, inside a machine
    same shard    0 4, 1 5, 2 6, 3 7       one group each, between machines

Ranks of a copy are neighbours, as launchers number them machine by machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import attrs
from torch import distributed as dist

from zoo.errors import ConfigError
from zoo.planning.layout import check_reducer, processes_of_a_copy, shard_of

log = logging.getLogger("zoo.train")


@attrs.frozen(kw_only=True, eq=False)
class Copies:
    """This process's place. As it stands: one process, alone."""

    shards: int = 1
    """Processes that share a copy."""
    count: int = 1
    """Copies."""
    shard: int = 0
    """Which shard of its copy this process holds."""
    copy: int = 0
    """Which copy it belongs to; the first one writes files."""
    inside: Any = None
    """Process group of the copy."""
    between: Any = None
    """Process group of those that hold the same shard; None where there is one copy."""


def copies(world: Any, zero: int, options: Any) -> Copies:
    """Return this process's place, its groups made; all processes call this together, once a run.

    Args:
        world: the processes, which have met.
        zero: ZeRO stage; 0: every process holds all, and is a copy.
        options: `TrainOptions`, of which `shard`, `per_node` and `reducer` are read.

    Raises:
        ConfigError: the processes make no whole machines, or the reducer cannot work here.
    """
    per_node = _machines(world, options.per_node) if zero else 1
    each = processes_of_a_copy(zero, shard_of(zero, options.shard, options.reducer), per_node, world.size)
    check_reducer(zero, each, options.reducer)
    count, place = world.size // each, divmod(world.rank, each)
    if options.reducer is not None and count == 1:
        one = "there is one process" if world.size == 1 else f"all {world.size} processes share one copy of the model"
        more = "; --per-node 1 takes each for a machine of its own" if world.size > 1 else ""
        log.warning("--reducer %s has nothing to do between machines: %s%s", options.reducer, one, more)
    said: dict[str, int] = {"shards": each, "count": count, "copy": place[0], "shard": place[1]}
    if world.size == 1 and not dist.is_initialized():
        return Copies(**said)
    start = place[0] * each
    return Copies(
        **said,
        inside=_group(range(start, start + each), world),
        between=_group(range(place[1], world.size, each), world) if count > 1 else None,
    )


def _group(ranks: range, world: Any) -> Any:
    if len(ranks) == world.size:
        return dist.group.WORLD
    # Only the members meet: a thousand processes make their two groups each, and not all groups of all.
    return dist.new_group(list(ranks), timeout=timedelta(minutes=world.minutes), use_local_synchronization=True)


def _machines(world: Any, said: int | None) -> int:
    """Return how many processes each machine has.

    Raises:
        ConfigError: on every process, when they were told different numbers, or make no whole machines.
    """
    found = world.gather(machine(world.size, said))
    if len(set(found)) > 1:
        ranks = ", ".join(f"{n} to rank {found.index(n)}" for n in sorted(set(found)))
        raise ConfigError(
            f"machines have different numbers of processes (the launchers say {ranks}), and shards are cut alike on "
            "all: start as many on each, or say --per-node, or --zero 0"
        )
    return found[0]


def machine(size: int, said: int | None, environ: Mapping[str, str] = os.environ) -> int:
    """Return how many processes a machine has: what was said, else what the launcher tells, else all.

    Raises:
        ConfigError: the processes make no whole machines.
    """
    told = environ.get("LOCAL_WORLD_SIZE", environ.get("LOCAL_SIZE", size)) if size > 1 else 1
    found = int(told) if said is None else said
    if size % found:
        whole = [n for n in range(1, size + 1) if size % n == 0]
        near = min(whole, key=lambda n: abs(n - found))
        raise ConfigError(f"{size} processes make no whole machines of {found}; try --per-node {near}")
    return found

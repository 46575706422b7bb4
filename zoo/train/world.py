"""The processes of a run: who writes, what all must know, and what they must agree about.

Rank 0 alone writes what a run has once (its folder, finished parts, stores, metrics); `first` runs what the others wait
for and lets every rank know how it went. A checkpoint alone is written by several: every process that holds a piece of
the first copy of the model writes its own. Values that decide numbers are compared between the ranks before the first
step.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar

import attrs

from zoo.errors import ConfigError, ZooError
from zoo.train.facts import differences, facts

T = TypeVar("T")

_SEEN_SECONDS = 90.0
"""For a file to be seen elsewhere: an NFS client may believe for a minute that what it has missed is not there."""


class Processes(Protocol):
    """What an engine's `world` has.

    It may also have `alone()`, a context in which rank 0 works for as long as it takes, and which the others enter when
    it has left; without it they wait in `share`.
    """

    @property
    def rank(self) -> int:
        """Number of this process."""

    @property
    def size(self) -> int:
        """How many there are."""

    def barrier(self) -> None:
        """Wait until every process is here."""

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks, on every rank."""

    def at(self, step: int) -> None:
        """Say that this process begins update `step` (counted from 0)."""


@attrs.frozen
class World:
    """One process."""

    rank: int = 0
    size: int = 1

    def barrier(self) -> None:
        """Wait for nobody."""

    def share(self, value: Any) -> Any:
        """Return the value."""
        return value

    def gather(self, value: Any) -> list[Any]:
        """Return the value alone."""
        return [value]

    def at(self, step: int) -> None:
        """Say so to nobody."""


class Elsewhere(RuntimeError):
    """Another process failed and says why; this one has nothing to add.

    Args:
        reason: what it said.
        code: its exit code.
    """

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


def first(world: Processes, act: Callable[[], T]) -> T:
    """Return on every rank what `act` returns on rank 0, the only one that runs it.

    Raises:
        Elsewhere: on the other ranks, when it failed on rank 0, which raises what it raised.
    """
    outcome: tuple[Any, str, int] = (None, "", 0)
    failed: BaseException | None = None
    with getattr(world, "alone", nullcontext)():
        if world.rank == 0:
            try:
                outcome = act(), "", 0
            except BaseException as error:
                failed, code = error, 2 if isinstance(error, ZooError) else 1
                outcome = None, f"{type(error).__name__}: {error}", code
    value, reason, code = world.share(outcome)  # a failure too: nobody must wait for ever
    if failed is not None:
        raise failed
    if code:
        raise Elsewhere(f"rank 0 failed: {reason}", code)
    return value


def seen(path: Path) -> Path:
    """Return a path that rank 0 has written, once it is seen here.

    Raises:
        ConfigError: it does not appear, so this machine has another disk.
    """
    until = time.monotonic() + _SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > until:
            raise ConfigError(
                f"'{path}', which rank 0 has written, does not appear here: all machines must see one disk; "
                "choose an --out that is on it"
            )
        time.sleep(0.5)
    return path


def agree(world: Processes, said: Mapping[str, Any]) -> None:
    """Compare what the ranks were told; only hashes travel while they are equal.

    Raises:
        ConfigError: on every rank, when they differ; names the first rank that does, and in what.
    """
    if world.size == 1:
        return
    mine = facts(**said)
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    digests = world.gather(digest)
    if len(set(digests)) == 1:
        return
    told = world.gather(mine)
    rank = next(i for i, other in enumerate(digests) if other != digests[0])
    name, ours, theirs = next(differences(told[0], told[rank]))
    raise ConfigError(
        f"the processes were started differently: {name} is {ours!r} on rank 0 and {theirs!r} on rank {rank}; "
        "start all with the same command, files and versions"
    )

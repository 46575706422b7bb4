"""The batches of a stage, in an order that is a function of seed and step."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import Any

import attrs

from zoo.data.base import rows_at
from zoo.errors import ConfigError
from zoo.interfaces import Batch
from zoo.rng import Rng

AHEAD = 2
"""Batches kept ready for an accelerator."""


@attrs.frozen(kw_only=True)
class Feed:
    """This process's share of every global batch.

    Args:
        read: `(rows, rng) -> Batch`; a dataset's `read`, or that of a store.
        length: rows of the data.
        batch: samples of the global batch.
        world: has `rank` and `size`.
        pieces: micro-batches. The global batch is cut into them first and then among the processes, so that a
            micro-batch is made of the same samples whatever the number of processes.
    """

    read: Callable[..., Batch]
    length: int
    batch: int
    seed: int
    world: Any
    pieces: int = 1
    ahead: int = 0
    """Batches read ahead in a thread; 0: each is read when it is asked for. For training on a CPU 0 is faster: a second
    thread that computes has torch share out the cores twice, which takes a quarter to a half longer for an update."""

    @property
    def positions(self) -> list[int]:
        """Places in the global batch of the samples this process reads, one micro-batch after the other."""
        piece = self.batch // self.pieces
        share = piece // self.world.size
        starts = [i * piece + self.world.rank * share for i in range(self.pieces)]
        return [place for start in starts for place in range(start, start + share)]

    def rng(self, step: int) -> Rng:
        """Return the random numbers of this process's samples of update `step`."""
        return Rng(self.seed, self.positions, step=step)

    def at(self, step: int) -> Batch:
        """Return this process's batch of update `step`."""
        rows = rows_at(self.length, self.seed, step, self.batch)
        mine = [int(rows[i]) for i in self.positions]
        return self.read(mine, self.rng(step).fork("data"))

    def batches(self, start: int, stop: int) -> Generator[tuple[int, Batch], None, None]:
        """Yield (step, batch) for the updates from `start` up to `stop`."""
        if self.ahead:
            yield from self._read_ahead(start, stop)
            return
        for step in range(start, stop):
            yield step, self.at(step)

    def _read_ahead(self, start: int, stop: int) -> Generator[tuple[int, Batch], None, None]:
        ready: queue.Queue[Any] = queue.Queue(maxsize=self.ahead)
        closed = threading.Event()

        def offer(item: Any) -> bool:
            while not closed.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def work() -> None:
            try:
                for step in range(start, stop):
                    if not offer((step, self.at(step))):
                        return
                offer(None)
            except BaseException as error:
                offer(error)

        reader = threading.Thread(target=work, name="feed", daemon=True)
        reader.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            closed.set()
            reader.join()


def check_shares(batch: int, processes: int, pieces: int) -> None:
    """Raise ConfigError when a global batch does not divide into processes and micro-batches; say which would."""
    shares = processes * pieces
    if batch % shares:
        near = max(1, round(batch / shares)) * shares
        what = f"{processes} processes x {pieces} micro-batches" if processes > 1 else f"{pieces} micro-batches"
        raise ConfigError(f"a batch of {batch} does not divide into {what}; try --batch {near}")

"""How two implementations are timed beside each other, and the row a benchmark reports.

A figure without its machine says little, so each row carries a ratio to a peer that ran in the same process,
alternating with ours, and the share of that machine's matmul peak that ours reached.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import attrs
import torch

CLOCKS: Mapping[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Seconds on the clock, and processor seconds summed over the process's threads."""


@attrs.frozen
class Row:
    """One line of `scripts/bench.py --json`."""

    name: str
    """What was timed."""
    ours: float
    """Our figure, in `unit`."""
    peer: float
    """The peer's figure, in `unit`."""
    ratio: float
    """How many times faster ours is: above 1 is better, whichever way `unit` counts."""
    unit: str
    """"s" (less is better), "tokens/s" (more is better)."""
    sizes: Mapping[str, int]
    """What fixes the amount of work."""
    peak_share: float | None = None
    """Needed FLOP/s of ours over the best fp32 matrix product of the same process, in [0, 1]."""


@attrs.frozen
class Timing:
    """Medians over pairs, in seconds a call."""

    ours: float
    peer: float
    ratio: float
    """Median over the pairs of peer's seconds / our seconds."""


def alternate(
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    pairs: int = 5,
    warmup: int = 1,
    clock: Literal["wall", "cpu"] = "wall",
) -> Timing:
    """Time two calls in turns; the second of a pair goes first in the next, so that drift cancels.

    Args:
        ours: one call of our side.
        peer: one call of the peer doing the same work.
        pairs: timed pairs.
        warmup: untimed pairs before.
        clock: "wall", or "cpu" where other processes share the machine.
    """
    for _ in range(warmup):
        ours()
        peer()
    mine: list[float] = []
    theirs: list[float] = []
    for pair in range(pairs):
        order = [(ours, mine), (peer, theirs)]
        for call, seconds in order if pair % 2 == 0 else order[::-1]:
            seconds.append(_seconds(call, clock))
    return Timing(
        statistics.median(mine),
        statistics.median(theirs),
        statistics.median(b / a for a, b in zip(mine, theirs, strict=True)),
    )


def _seconds(call: Callable[[], Any], clock: str) -> float:
    now = CLOCKS[clock]
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = now()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return max(now() - start, 1e-9)


def matmul_peak(size: int = 1024, repeats: int = 10, clock: Literal["wall", "cpu"] = "wall") -> float:
    """Return the best FLOP/s of a size³ fp32 matrix product in this process, with the threads it has now."""
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    torch.mm(a, b, out=out)
    best = min(_seconds(lambda: torch.mm(a, b, out=out), clock) for _ in range(repeats))
    return 2 * size**3 / best

"""Cutting long work on channels into blocks, so that what a block needs for itself stays small."""

from __future__ import annotations

from collections.abc import Iterator

import torch

ON_CPU = 1 << 18
"""Values of a block: about what a core's cache holds, and little enough that memory is used again, not asked anew."""
ELSEWHERE = 1 << 26
"""The same on a GPU, which wants large blocks."""
NARROWEST = 16
"""Channels that are read together at least: where they lie side by side they fill a line of the cache."""


def blocks(channels: int, each: int, device: torch.device) -> Iterator[slice]:
    """Yield slices that cover `channels`, each channel taking `each` values."""
    values = ON_CPU if device.type == "cpu" else ELSEWHERE
    size = max(NARROWEST, values // max(each, 1))
    for start in range(0, channels, size):
        yield slice(start, min(start + size, channels))

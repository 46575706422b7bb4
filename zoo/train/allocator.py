"""Keeping freed memory, so that the next update finds it warm.

glibc returns every large block to the system when it is freed and gets it back zeroed page by page. A training step on
a CPU frees and asks for the same blocks thousands of times; keeping them takes a fifth off the dVAE's update.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGEST = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Ask glibc to keep what is freed; return False where the C library is another one, which then does as it did."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_MMAP_THRESHOLD, 1 << 30) and mallopt(_TRIM_THRESHOLD, _LARGEST))

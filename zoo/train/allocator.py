"""Keeping freed memory, so that the next update finds it warm.

glibc returns every large block to the system when it is freed and gets it back zeroed page by page. A training step on
a CPU frees and asks for the same blocks thousands of times; keeping them takes a fifth off the dVAE's update.

Not where parameters are sharded: whole ones come and go in all sizes then, and a heap that keeps them is in pieces,
half as large again as what is in it (`scripts/bench.py memory`). Large blocks are returned there.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGEST = (1 << 31) - 1


def keep_freed_memory(*, sharded: bool = False) -> bool:
    """Ask glibc to keep what is freed; return False where the C library is another one, which then does as it did.

    Args:
        sharded: parameters are; only blocks under a MiB are kept.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    kept, trimmed = (1 << 20, 1 << 28) if sharded else (1 << 30, _LARGEST)
    return bool(mallopt(_MMAP_THRESHOLD, kept) and mallopt(_TRIM_THRESHOLD, trimmed))

"""One failure, told once and whole, however many processes it takes down."""

from __future__ import annotations

import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import click
from torch import distributed as dist

from zoo.errors import ZooError
from zoo.train.group import GRACE_SECONDS, Group, met
from zoo.train.interrupt import Interrupted
from zoo.train.loop import Diverged
from zoo.train.world import Elsewhere

_WORDS = ("gloo", "nccl", "application timeout caused pair closure")
"""What a collective that failed says of itself. Gloo raises plain RuntimeErrors, which begin with the path of one of
its files, but for the last: that is what is said of a connection on which an earlier collective timed out."""


def guarded(act: Callable[[], Any]) -> None:
    """Run a training command; of several processes that fail, the first tells why, and all end.

    Raises:
        click.exceptions.Exit: a failure of several processes, with the exit code: 2 for the user's mistakes, else 1.
        Whatever `act` raises, in one process.
    """
    try:
        act()
    except Interrupted:
        raise
    except Exception as error:
        group = met()
        if group is None or group.size == 1:
            raise
        raise click.exceptions.Exit(_tell(group, error)) from None


def _tell(group: Group, error: Exception) -> int:
    """Print what went wrong, if this process is the first to know; return the exit code."""
    code, collective = (2 if isinstance(error, ZooError) else 1), _is_collective(error)
    try:
        if isinstance(error, Elsewhere):
            code = error.code
            group.leave()
            return code
        if collective:
            group.was_there()
        if group.rank > 0 and isinstance(error, ZooError | Diverged):
            time.sleep(GRACE_SECONDS)  # what all have found alike is told by rank 0, which then ends this one
        if group.claim():
            print(_text(group, error, collective), file=sys.stderr, flush=True)
            group.over(code)
        else:
            time.sleep(2 * GRACE_SECONDS)  # until the one that tells has told, and ends this one
    except (RuntimeError, OSError):  # the store has gone with the process that kept it
        if group.rank == 1 and collective:
            said = f"train.py: in {group.place()} rank 1 lost rank 0, which ended without a word ({_line(error)})"
            print(said, file=sys.stderr, flush=True)
    return code


def _text(group: Group, error: Exception, collective: bool) -> str:
    if isinstance(error, ZooError | Diverged):
        who = f"rank {group.rank} ({socket.gethostname()}): " if group.rank > 0 else ""
        return f"train.py: {who}{_line(error)}"
    missing = group.missing() if collective else ""
    if missing:
        return f"train.py: in {group.place()} rank {group.rank} waited for others: missing {missing} ({_line(error)})"
    whole = "".join(traceback.format_exception(error))
    return f"train.py: rank {group.rank} failed in {group.place()}:\n{whole}"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _is_collective(error: Exception) -> bool:
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)
    )

"""Ctrl-C and SIGTERM during training: the first asks the loop to save and stop, the second ends the process."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger("zoo.train")

SIGNALS = (signal.SIGINT, signal.SIGTERM)

_ECHO_SECONDS = 2.0


class Interrupted(Exception):
    """Training was asked to stop, and has saved.

    Args:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(f"stopped by {signal.Signals(number).name}")

    @property
    def exit_code(self) -> int:
        """130 after Ctrl-C, 143 after SIGTERM, as a shell has it."""
        return 128 + self.number


class Request:
    """Holds the signal that asked to stop; 0 while none did."""

    number = 0
    asked = 0.0
    """When it came to this process, on the monotonic clock."""


@contextmanager
def watched() -> Iterator[Request]:
    """Turn the first SIGINT or SIGTERM inside the block into a request; the second acts as it would have outside.

    A launcher of many processes passes on a Ctrl-C that the terminal has sent to all of them already, as the same
    signal or as SIGTERM: under one, only the same signal a while later is a second one.
    """
    request, launched = Request(), int(os.environ.get("WORLD_SIZE", "1")) > 1
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        if request.asked:
            if number == request.number and time.monotonic() - request.asked > _ECHO_SECONDS:
                restore()
                os.kill(os.getpid(), number)
            return
        request.number, request.asked = number, time.monotonic()
        if not launched:
            restore()
        log.warning("%s: saving a checkpoint, then stopping; once more to stop at once", signal.Signals(number).name)

    for number in before:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        restore()

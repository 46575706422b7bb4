"""What the person at the terminal sees while a stage trains."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

log = logging.getLogger("zoo.train")

_QUIET_SECONDS = 30.0


class Progress:
    """A bar with loss, rate and time left on a terminal; elsewhere a plain line every half minute.

    Args:
        title: what is being done.
        total: steps in all.
        start: steps done already.
        unit: name of a step.
        batch: samples in a step, for the rate of samples; 0: not shown.
        quiet: show nothing.
    """

    def __init__(
        self, title: str, total: int, start: int = 0, *, unit: str = "it", batch: int = 0, quiet: bool = False
    ) -> None:
        disable = True if quiet else None  # None: where there is no terminal
        self._bar = tqdm(total=total, initial=start, desc=title, unit=unit, disable=disable, dynamic_ncols=True)
        self._quiet = quiet
        self._redirect = None if self._bar.disable else logging_redirect_tqdm([logging.getLogger("zoo")])
        self._title, self._total, self._done, self._batch = title, total, start, batch
        self._began = self._said = time.monotonic()
        self._start = start

    def __enter__(self) -> Progress:
        if self._redirect is not None:
            self._redirect.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.close()
        if self._redirect is not None:
            self._redirect.__exit__(*error)
        sys.stderr.flush()

    def advance(self, steps: int = 1, **shown: float) -> None:
        """Count steps and show these numbers."""
        self._done += steps
        now = time.monotonic()
        rate = (self._done - self._start) / max(now - self._began, 1e-9)
        said = {name: f"{x:.4g}" for name, x in shown.items()}
        if self._batch:
            said["img/s"] = f"{rate * self._batch:.0f}"
        if not self._bar.disable:
            self._bar.set_postfix(said, refresh=False)
            self._bar.update(steps)
        elif now - self._said >= _QUIET_SECONDS and not self._quiet:
            self._said = now
            numbers = ", ".join(f"{name} {x}" for name, x in said.items())
            left = (self._total - self._done) / max(rate, 1e-9)
            log.info("%s: %d of %d, %s, %.0f s left", self._title, self._done, self._total, numbers, left)

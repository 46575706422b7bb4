"""`scripts/train.py` with a fault in it: FAULT="KIND RANK UPDATE" in the environment says which.

"raise": the process fails as a part with a mistake would; "hang": it computes for ever; "kill": it is killed; "nan":
the gradient of one of its blocks is not finite; "none": all is well.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from zoo import front
from zoo.train.options import main


class Mistake(Exception):
    """What a part raises."""


def deep(depth: int) -> None:
    """Fail below a few frames, which a whole traceback shows."""
    if depth:
        deep(depth - 1)
    raise Mistake("these shapes do not fit\n(3, 4) and (5, 6)")


def spoil(job: Any) -> None:
    """Make an infinity of one gradient of this process, once."""
    parameter = next(p for name, p in job.engine.stage.named_parameters() if ".branch." in name)
    handle = parameter.register_hook(lambda grad: (handle.remove(), grad * float("inf"))[1])


def faulty(update: Callable[..., Any]) -> Callable[..., Any]:
    kind, rank, at = os.environ["FAULT"].split()

    def act(job: Any, batch: Any, step: int) -> Any:
        if (step + 1, job.engine.world.rank) == (int(at), int(rank)):
            if kind == "raise":
                deep(3)
            while kind == "hang":
                time.sleep(0.1)
            if kind == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "nan":
                spoil(job)
        return update(job, batch, step)

    return act


def run(command: Any, *args: Any, before: Callable[..., Any] = front.run, **more: Any) -> int:
    """Run the command, its updates faulty; torch is imported no earlier than it would be without."""
    from zoo.train import loop

    loop.update = faulty(loop.update)
    return before(command, *args, **more)


if __name__ == "__main__":
    front.run = run
    sys.exit(main())

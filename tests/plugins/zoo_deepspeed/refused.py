"""Runs commands that cannot be, one after the other in one process group, and writes what was raised by each.

As `launch.py`; a command may say under "each" what the ranks are told differently.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from launch import go

RANK = int(os.environ["RANK"])


def refusal(command: dict) -> str:
    mine = command.pop("each", ({}, {}))[RANK]
    try:
        go({**command, **mine})
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    found = [refusal(command) for command in json.loads(path.read_text())]
    (path.parent / f"rank{RANK}.json").write_text(json.dumps(found))
    os._exit(0)

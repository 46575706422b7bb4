"""Peak memory of a process in ZeRO-3 training, beside what `zoo plan` says of it.

A DALL-E prior of half a thousand million parameters is built and trained for three updates in fp32 by two processes on
this machine, each of which holds a half. Measured is the highest resident memory of a process up to the end of its
last update, and again when a checkpoint and the part have been written. Taken off is what the same process has after
it has trained a small codebook with the same engine: the interpreter, the libraries and their workspaces, of which the
plan knows nothing. Takes 16 GiB and about five minutes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from zoo.bench import processes
from zoo.bench.timing import Row
from zoo.construct import free_memory
from zoo.errors import DoesNotFit
from zoo.planning.devices import GIB
from zoo.planning.plan import Plan, plan

MODEL = "dalle"
SIZE = ("prior.width=1280", "prior.heads=20", "prior.depth=26")
PROCESSES, BATCH, STEPS = 2, 2, 3
SPARE = 1.25
"""How many times what is planned must be free to begin with."""


def commands(out: Path, size: tuple[str, ...]) -> list[dict[str, Any]]:
    """Return the training commands: the codebook, and the prior on it."""
    same = {
        "model": MODEL, "set": size, "batch": BATCH, "engine": "deepspeed", "zero": 3, "sample_every": 0,
        "save_every": STEPS, "out": out,
    }  # fmt: skip
    return [{**same, "part": "codebook", "steps": 1}, {**same, "part": "prior", "steps": STEPS}]


def planned(size: tuple[str, ...] = SIZE) -> Plan:
    """Return the plan of the second command."""
    return plan(MODEL, part="prior", overrides=size, devices=PROCESSES, batch=BATCH, zero=3, precision="fp32",
                storage="zoo")  # fmt: skip


def resident(kind: str) -> int:
    """Return this process's bytes of memory: "VmRSS" now, "VmHWM" at most so far."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[kind].split()[0]) * 1024


@contextmanager
def marking(marks: dict[str, int]) -> Iterator[None]:
    """Note the highest memory before and after each checkpoint is written, as "trained" and "saved"."""
    from zoo.train.checkpoint import Checkpoints

    save = Checkpoints.save

    def noted(*arguments: Any) -> None:
        marks["trained"] = resident("VmHWM")
        save(*arguments)
        marks["saved"] = resident("VmHWM")

    with mock.patch.object(Checkpoints, "save", noted):
        yield


def work(folder: Path) -> None:
    """Be one of the processes: train, and write what it took, in bytes, to a file of its own."""
    marks: dict[str, int] = {}
    codebook, prior = json.loads((folder / "commands.json").read_text())
    with marking(marks):
        processes.run(codebook)
        marks["small"] = resident("VmRSS")
        processes.run(prior)
    marks["finished"] = resident("VmHWM")
    (folder / f"marks-{os.environ['RANK']}.json").write_text(json.dumps(marks))


def measure(size: tuple[str, ...] = SIZE) -> list[dict[str, int]]:
    """Return what each process noted, in bytes.

    Raises:
        DoesNotFit: too little memory is free.
        Failed: a process failed.
    """
    import torch

    need, free = SPARE * PROCESSES * planned(size).memory.total, free_memory(torch.device("cpu"))
    if need > free:
        raise DoesNotFit(f"this benchmark needs {need / GIB:.1f} GiB of free memory, and {free / GIB:.1f} GiB are")
    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as name:
        folder = Path(name)
        (folder / "commands.json").write_text(json.dumps(commands(folder / "run", size), default=str))
        processes.launch(PROCESSES, ["-m", "zoo.bench.memory", name])
        return [json.loads((folder / f"marks-{rank}.json").read_text()) for rank in range(PROCESSES)]


def rows(size: tuple[str, ...] = SIZE) -> list[Row]:
    """Return the peak of the fuller process in training, and with saving, beside the plan; ratio: peak / plan."""
    made, found = planned(size), measure(size)
    total = made.memory.total
    sizes = {"params": made.stage.cost.params, "processes": PROCESSES, "batch": BATCH, "steps": STEPS,
             "libraries_mib": max(marks["small"] for marks in found) >> 20}  # fmt: skip
    what = {"trained": "ZeRO-3 training's peak memory beside its plan", "finished": "the same, with saving"}
    return [
        Row(name, peak / GIB, total / GIB, peak / total, "GiB", sizes)
        for mark, name in what.items()
        for peak in [max(marks[mark] - marks["small"] for marks in found)]
    ]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(0)  # without waiting for backends to take each other down

"""Several processes on this machine, each running training commands one after the other.

As a program it is one of these processes: it reads a list of commands (options of `TrainOptions`) from a JSON file and
runs them in one process group. A line of its log a command: its exit code. As a module, `launch` starts them.
"""

from __future__ import annotations

import atexit
import faulthandler
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from zoo.bench.processes import free_port, place
from zoo.bench.processes import run as go

ROOT = Path(__file__).parents[3]


@functools.cache
def logs() -> Path:
    """Return a folder for what processes say, which goes when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="zoo-logs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "plugins"), str(Path(__file__).parent)]
    said = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": os.pathsep.join(paths)}
    return {**os.environ, **said, **place(rank, size, port)}


def start(size: int, command: list[str], each: Sequence[list[str]] = (), **more: str) -> list[subprocess.Popen]:
    """Start `python command` on every rank, with `more` in the environment; its stderr is kept in the file `log`.

    `each`: what is added to the command, rank by rank.
    """
    port, processes = free_port(), []
    for rank in range(size):
        handle, log = tempfile.mkstemp(prefix=f"rank{rank}-", dir=logs())
        with open(handle, "w") as file:
            process = subprocess.Popen(
                [sys.executable, *command, *(each[rank] if each else ())],
                env={**environment(rank, size, port), **more},
                stdout=subprocess.DEVNULL, stderr=file,
            )  # fmt: skip
        process.log = log
        processes.append(process)
    return processes


def finish(processes: list[subprocess.Popen], seconds: float = 240) -> tuple[list[int], list[str]]:
    """Return exit codes and what was written to stderr; end all when one has not ended in time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(process.poll() is None for process in processes):
        time.sleep(0.05)
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGUSR1)  # says where it hangs
            time.sleep(0.2)
            process.kill()
    return [process.wait() for process in processes], [Path(process.log).read_text() for process in processes]


def run_all(
    folder: Path, size: int, commands: list[dict], seconds: float = 240, program: str | Path = __file__
) -> list[str]:
    """Run commands one after the other on `size` processes in one launch; return what each process said."""
    path = folder / "commands.json"
    path.write_text(json.dumps(commands))
    codes, said = finish(start(size, [str(program), str(path)]), seconds)
    assert codes == [0] * size, "\n".join(said)
    return said


def main() -> None:
    faulthandler.register(signal.SIGUSR1)
    for command in json.loads(Path(sys.argv[1]).read_text()):
        began = time.monotonic()
        go(command)
        print(
            f"{time.monotonic() - began:.1f} s",
            {k: command[k] for k in ("part", "zero", "precision") if k in command},
            file=sys.stderr,
        )
    os._exit(0)  # without waiting for backends to take each other down


if __name__ == "__main__":
    main()

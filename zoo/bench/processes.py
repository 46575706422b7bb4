"""Several processes on this machine for a benchmark, and training commands that they run.

As a program, `python -m zoo.bench.processes COMMANDS.json`, it is one of them: it runs a list of training commands
one after the other, so that what takes long to start is started once.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.train.group import ENVIRONMENT

POLL_SECONDS = 0.05
GRACE_SECONDS = 10.0
"""How long processes may take to end by themselves when another has failed, or after Ctrl-C."""

Command = Mapping[str, Any]
"""Fields of `zoo.train.options.TrainOptions`, as JSON has them."""


class Failed(RuntimeError):
    """A process ended with an error; the text ends with what it said."""


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what one of several processes is started with, as a launcher sets it; nothing special for one alone.

    Each computes with one thread on the CPU: sums are then made in one order, whatever the number of cores.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    said = {**kept, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    return said if size == 1 else said | place(rank, size, port)


def place(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what a launcher tells one of the processes of this machine."""
    said = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(x) for name, x in said.items()}}


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def launch(size: int, arguments: Sequence[str], *, minutes: float = 60.0) -> None:
    """Run `python ARGUMENTS` in so many processes, and return when all are done.

    Raises:
        Failed: one failed, or they took longer than `minutes`; all have been ended.
    """
    port, until = (free_port() if size > 1 else 0), time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
        logs = [Path(folder) / f"rank-{rank}.log" for rank in range(size)]
        processes = [_start(arguments, environment(rank, size, port), log) for rank, log in enumerate(logs)]
        try:
            _wait(processes, until)
        except KeyboardInterrupt:
            _wait(processes, time.monotonic() + GRACE_SECONDS)  # they were told too, and save what they have
            raise
        finally:
            for process in processes:
                process.kill()  # changes nothing where it has ended
            for process in processes:
                process.wait()
        codes = [process.returncode for process in processes]
        if any(codes):
            said = [f"rank {rank}, exit code {code}:\n{_tail(logs[rank])}" for rank, code in enumerate(codes) if code]
            raise Failed("\n".join(["processes of the benchmark failed, or took too long", *said]))


def _start(arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, *arguments], env=dict(environ), stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def _wait(processes: Sequence[subprocess.Popen[bytes]], until: float) -> None:
    """Return when all have ended, or shortly after one failed, or when it is too late."""
    failed = False
    while any(process.poll() is None for process in processes) and time.monotonic() < until:
        if not failed and any(process.poll() for process in processes):
            # What the first says may be no more than that another has gone: let all speak.
            failed, until = True, min(until, time.monotonic() + GRACE_SECONDS)
        time.sleep(POLL_SECONDS)


def _tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def train(
    size: int, commands: Sequence[Command], *, program: str = "zoo.bench.processes", minutes: float = 60.0
) -> None:  # fmt: skip
    """Run training commands one after the other, in so many processes that are started once.

    Args:
        size: processes.
        commands: what they run.
        program: the module that is run; it gets the file of the commands.
        minutes: how long they may take.

    Raises:
        Failed: see `launch`.
    """
    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
        path = Path(folder) / "commands.json"
        path.write_text(json.dumps(list(commands), default=str))
        launch(size, ["-m", program, str(path)], minutes=minutes)


def run(command: Command) -> None:
    """Run one training command in this process, with "threads" threads where it says so."""
    import torch

    from zoo.train import options
    from zoo.train.run import run

    command = dict(command)
    torch.set_num_threads(command.pop("threads", torch.get_num_threads()))
    paths = {name: Path(command[name]) for name in ("out", "engine_config") if command.get(name)}
    run(options.TrainOptions(**{**command, **paths, "set": tuple(command.get("set", ()))}))


def work(path: str, each: Callable[[Command], None] = run) -> None:
    """Call `each` with every command of a JSON file, and leave the process."""
    for command in json.loads(Path(path).read_text()):
        each(command)
    sys.stderr.flush()
    os._exit(0)  # without waiting for backends to take each other down


if __name__ == "__main__":
    work(sys.argv[1])

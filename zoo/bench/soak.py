"""What `scripts/soak` is made of: training commands of one or several processes, ended at chosen moments.

Needs no more than a run folder says: its metrics.jsonl, and its checkpoints as `zoo.train.checkpoint` judges them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from zoo.bench.processes import free_port, place
from zoo.train.checkpoint import Checkpoints, torn
from zoo.train.metrics import read_rows
from zoo.weights import load_tensors

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0
"""Seconds after which processes that should have ended are taken to hang."""


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """Return what a launcher would set; one process is started without a launcher.

    All compute with one thread, unless the environment says otherwise: another number rounds differently.
    """
    paths = [str(ROOT), str(ROOT / "plugins"), *filter(None, [os.environ.get("PYTHONPATH")])]
    plain = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    return plain if size == 1 else plain | place(rank, size, port)


class Run:
    """A run folder and the processes that train it just now.

    Args:
        out: the run folder.
        options: of scripts/train.py, the same at every start.
    """

    def __init__(self, out: Path, options: list[str]) -> None:
        self.out, self.options = out, options
        self.processes: list[subprocess.Popen[bytes]] = []
        self.logs: list[Path] = []
        self.starts = 0
        self.best: dict[str, int] = {}
        """Part -> step of the newest checkpoint that was ever seen."""
        self._left: set[tuple[str, int]] = set()
        self._said = 0

    def start(self, size: int, *more: str) -> None:
        """Start the training command on `size` processes; it goes on from the newest checkpoint."""
        port = free_port()
        self.starts += 1
        self._left, self._said = self._hidden(), self._stamp()
        self.processes, self.logs = [], []
        command = [sys.executable, str(ROOT / "scripts" / "train.py"), "--out", str(self.out), "--resume"]
        command += [*self.options, *more]
        for rank in range(size):
            log = self.out.with_name(f"{self.out.name}-start{self.starts:02}-rank{rank}.log")
            places = environment(rank, size, port)
            with log.open("w") as file:
                self.processes.append(subprocess.Popen(command, env=places, stdout=subprocess.DEVNULL, stderr=file))
            self.logs.append(log)

    def ended(self) -> bool:
        """Return whether any process has ended by itself."""
        return any(process.poll() is not None for process in self.processes)

    def met(self) -> bool:
        """Return whether the processes of this start have met: thereafter run.toml is written.

        One that is killed before is waited for as long as one that is slow, until a launcher ends the others.
        """
        return self._stamp() != self._said

    def _stamp(self) -> int:
        file = self.out / "run.toml"
        return file.stat().st_mtime_ns if file.exists() else 0

    def until(self, ready: Callable[[], bool], pause: float = 0.005) -> bool:
        """Wait until `ready()`; return False when a process ended before."""
        while not ready():
            if self.ended():
                return False
            self.look()
            time.sleep(pause)
        return True

    def kill(self, ranks: Iterable[int]) -> None:
        """Send SIGKILL."""
        for rank in ranks:
            self.processes[rank].kill()

    def finish(self, patience: float | None = None) -> list[int]:
        """Wait for all processes; return their exit codes. With `patience` all are killed after so many seconds."""
        until = time.monotonic() + (patience or float("inf"))
        while any(process.poll() is None for process in self.processes):
            self.look()
            if time.monotonic() > until:
                self.kill(range(len(self.processes)))
            time.sleep(0.02)
        self.look()
        return [process.returncode for process in self.processes]

    def said(self) -> str:
        """Return what the processes of the last start wrote."""
        return "\n".join(log.read_text(errors="replace") for log in self.logs)

    def updates(self) -> int:
        """Return how many updates are recorded."""
        metrics = self.out / "metrics.jsonl"
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def saving(self) -> bool:
        """Return whether the processes are inside a save: a folder is hidden that no earlier kill has left."""
        return bool(self._hidden() - self._left)

    def _hidden(self) -> set[tuple[str, int]]:
        """Return the hidden folders beside the checkpoints, and when they last changed."""
        found = set()
        for path in self.out.glob("checkpoints/*/.*-step-*"):
            try:
                found.add((str(path), path.stat().st_ctime_ns))
            except FileNotFoundError:  # gone since
                continue
        return found

    def look(self) -> None:
        """Note which checkpoints there are."""
        for path in self.out.glob("checkpoints/*/step-*"):
            part, step = path.parent.name, int(path.name[5:])
            self.best[part] = max(self.best.get(part, 0), step)

    def problems(self) -> list[str]:
        """Return what a kill may not leave: a torn checkpoint, or none as new as one that was there."""
        found = [f"{path}: {torn(path)}" for path in self.out.glob("checkpoints/*/step-*") if torn(path)]
        for part, step in self.best.items():
            newest = Checkpoints(self.out / "checkpoints" / part).newest()
            if newest is None or newest.step < step:
                found.append(f"{part}: step {step} was there, now {newest and newest.step} is the newest")
        return found

    def newest(self) -> int:
        """Return the step to go on from, of the part trained last; 0 without a checkpoint."""
        last, _ = next(reversed(rows(self.out)), ("", 0))
        found = Checkpoints(self.out / "checkpoints" / last).newest() if last else None
        return found.step if found else 0


class Pace(NamedTuple):
    """How long things take in a run that is not disturbed, seconds."""

    start: float
    """To the first update."""
    update: float
    save: float


def undisturbed(run: Run, size: int, *more: str) -> Pace:
    """Run to the end; return how long things took.

    Raises:
        RuntimeError: a process failed; with what all said.
    """
    run.start(size, *more)
    began, first, saves, since = time.monotonic(), 0.0, [], 0.0
    while not run.ended():
        now = time.monotonic()
        first = first or (now - began if run.updates() else 0.0)
        if run.saving():
            since = since or now
        elif since:
            saves.append(now - since)
            since = 0.0
        time.sleep(0.001)
    done(run)
    seconds = sorted(row["seconds"] for row in rows(run.out).values())
    return Pace(first, seconds[len(seconds) // 2], sorted(saves)[len(saves) // 2] if saves else 0.0)


def done(run: Run) -> None:
    """Wait for processes that are to end well.

    Raises:
        RuntimeError: one did not; with what all said.
    """
    codes = run.finish()
    if any(codes):
        raise RuntimeError(f"{run.out.name}: exit codes {codes}\n{run.said()}")


def stop(run: Run, ranks: list[int]) -> float:
    """Kill processes; return the seconds until the others had ended by themselves.

    Raises:
        RuntimeError: they did not.
    """
    run.kill(ranks)
    began = time.monotonic()
    codes = run.finish(PATIENCE)
    if any(code == -signal.SIGKILL for rank, code in enumerate(codes) if rank not in ranks):
        raise RuntimeError(f"{run.out.name}: ranks {ranks} were killed, the others hung\n{run.said()}")
    return time.monotonic() - began


def rows(out: Path) -> dict[tuple[str, int], dict[str, Any]]:
    """Return every recorded update's numbers by part and step, without how long it took."""
    return {(row["part"], row["step"]): row for row in read_rows(out / "metrics.jsonl")}


def same_numbers(one: Path, two: Path) -> bool:
    """Return whether two runs recorded the same updates, all numbers but their durations equal bit for bit."""
    a, b = ([{k: x for k, x in row.items() if k != "seconds"} for row in rows(out).values()] for out in (one, two))
    return a == b


def largest_difference(one: Path, two: Path) -> tuple[float, int]:
    """Return the largest relative difference of two runs' losses, and its step; infinite where updates are missing."""
    a, b = rows(one), rows(two)
    if a.keys() != b.keys():
        return float("inf"), min(step for _, step in a.keys() ^ b.keys())
    apart = ((abs(a[key]["loss"] - b[key]["loss"]) / max(abs(b[key]["loss"]), 1e-12), key[1]) for key in a)
    return max(apart)


def differences(one: Path, two: Path) -> list[str]:
    """Return the names of the parts' tensors that are not equal bit for bit."""
    wrong = []
    names = {path.name for path in (*one.glob("*.safetensors"), *two.glob("*.safetensors"))}
    for name in sorted(names):
        if not (one / name).exists() or not (two / name).exists():
            wrong.append(f"{name}: in one of the runs alone")
            continue
        a, b = load_tensors(one / name)[0], load_tensors(two / name)[0]
        same = {key for key in a.keys() & b.keys() if a[key].dtype == b[key].dtype and torch.equal(a[key], b[key])}
        wrong += [f"{name}: {key}" for key in sorted((a.keys() | b.keys()) - same)]
    return wrong if names else ["no finished part"]

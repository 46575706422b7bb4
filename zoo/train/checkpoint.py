"""Checkpoints that are whole or absent, whenever the process is killed.

A checkpoint is written into a hidden folder beside its place, every file is brought to the disk, the manifest (names,
sizes and sha256 of the files) is written last, and one rename makes it appear. The newest whole one is found by
itself; one that is torn all the same (a broken disk, a copy that stopped) is passed over with a line. Old ones go
only after a newer whole one exists.

What a checkpoint need not hold: random states (`zoo.rng` is counter based, its numbers are a function of seed, step
and sample) and the position in the data (the rows of a step are a function of seed and step).
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from zoo.train.world import Processes, first

log = logging.getLogger("zoo.train")

MANIFEST = "manifest.json"


@attrs.frozen
class Checkpoint:
    """One whole checkpoint."""

    folder: Path
    step: int
    """Updates done."""
    facts: Mapping[str, Any]
    """What it was made with; compared on resume."""


@attrs.frozen
class Checkpoints:
    """The checkpoints of one stage, `<run>/checkpoints/<part>/step-00001000`."""

    folder: Path
    keep: int = 2

    def place(self, step: int) -> Path:
        """Return the folder of the checkpoint after `step` updates."""
        return self.folder / f"step-{step:08d}"

    def save(self, step: int, write: Callable[[Path], None], facts: Mapping[str, Any], world: Processes) -> None:
        """Write a checkpoint; every process calls this, and each `write`s its own files into the folder given.

        The processes see one folder: their disk is shared. Afterwards all but the newest `keep` whole ones are
        removed. When this returns, on any process, the checkpoint is there.
        """
        final = self.place(step)
        beside = self.folder / f".writing-{final.name}"
        if first(world, lambda: not torn(final)):  # a run stopped right after resuming
            return
        first(world, lambda: _empty(beside))
        write(beside)
        world.barrier()
        mine = sorted(beside.iterdir())[world.rank :: world.size]  # hashing is shared out, whoever wrote a file
        measured = world.gather({path.name: _measure(path) for path in mine})
        files = {name: measure for part in measured for name, measure in sorted(part.items())}
        first(world, lambda: self._publish(beside, final, {"step": step, "facts": dict(facts), "files": files}))

    def _publish(self, beside: Path, final: Path, said: dict[str, Any]) -> None:
        manifest = beside / MANIFEST
        manifest.write_text(json.dumps(said, indent=1))
        _sync(manifest)
        _sync(beside)
        if final.exists():  # torn, as `save` has seen
            _remove(final)
        os.rename(beside, final)
        _sync(self.folder)
        self._prune(final)

    def _prune(self, newest: Path) -> None:
        """Remove what is neither the newest nor one of the `keep` - 1 before it."""
        older = [path for path in self._places() if path != newest and path < newest and not torn(path, deep=False)]
        kept = {newest, *older[: self.keep - 1]}
        for path in self.folder.iterdir():
            if path not in kept:
                _remove(path)

    def _places(self) -> list[Path]:
        """Return the folders of this stage's checkpoints, newest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((path for path in found if path.name[5:].isdigit()), reverse=True)

    def newest(self) -> Checkpoint | None:
        """Return the newest whole checkpoint; each torn one that is newer is named in a line of the log."""
        for path in self._places():
            reason = torn(path)
            if not reason:
                manifest = json.loads((path / MANIFEST).read_text())
                return Checkpoint(path, manifest["step"], manifest["facts"])
            log.warning("checkpoint %s is not whole (%s); using the one before it", path, reason)
        return None


def torn(folder: Path, *, deep: bool = True) -> str:
    """Return why a checkpoint is not whole, or "". With `deep` the sha256 of every file is checked too."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return "no readable manifest"
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, not {size}"
        if deep and _digest(path) != digest:
            return f"{name} is damaged"
    return ""


def _empty(folder: Path) -> None:
    """Make the folder, without what a killed save may have left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _measure(path: Path) -> tuple[int, str]:
    """Bring a file to the disk; return its size and sha256."""
    _sync(path)
    return path.stat().st_size, _digest(path)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have the kernel write a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    """Remove a folder or file, first taking it out of sight, so that a kill half-way leaves no torn checkpoint."""
    gone = path.with_name(f".gone-{path.name.lstrip('.')}")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, gone)
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()

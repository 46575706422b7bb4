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
import re
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import attrs

from zoo.errors import BadRun
from zoo.train.world import Processes, first

log = logging.getLogger("zoo.train")

MANIFEST = "manifest.json"

_PIECE = re.compile(r"state-\d+-of-(\d+)\.safetensors")
"""What `zoo.train.shards` names the files of an engine's state."""

FORMAT = 1
"""Of what a checkpoint holds; one of another format is not read."""


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

        Raises:
            OSError: on every process, files that belong to it were not found; nothing is published.
        """
        final = self.place(step)
        beside = self.folder / f".writing-{final.name}"
        if first(world, lambda: not torn(final)):  # a run stopped right after resuming
            return
        first(world, lambda: _empty(beside))
        write(beside)
        world.barrier()
        names = _written(beside, world)
        if lost := lacking(names):
            raise OSError(f"{beside} lacks {', '.join(lost)}: all machines must see one disk")
        mine = names[world.rank :: world.size]  # hashing is shared out, whoever wrote a file
        measured = world.gather({name: _measure(beside / name) for name in mine})
        files = {name: measure for part in measured for name, measure in sorted(part.items())}
        said = {"format": FORMAT, "step": step, "facts": dict(facts), "files": files}
        first(world, lambda: self._publish(beside, final, said))

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
        for path in (*self.folder.glob(".writing-step-*"), *self.folder.glob(".gone-*")):  # what kills have left
            _delete(path)
        for path in self._places():
            if path not in kept:
                _remove(path)

    def _places(self) -> list[Path]:
        """Return the folders of this stage's checkpoints, newest first."""
        found = self.folder.glob("step-*") if self.folder.is_dir() else ()
        return sorted((path for path in found if path.name[5:].isdigit()), reverse=True)

    def newest(self, *, deep: bool = True) -> Checkpoint | None:
        """Return the newest whole checkpoint; each torn one that is newer is named in a line of the log.

        Without `deep` it is what looks whole by names and sizes, and nothing is said.

        Raises:
            BadRun: it was written by another version of the zoo, in a format that this one does not read.
        """
        passed: list[tuple[Path, str]] = []
        found = None
        for path in self._places():
            if _format(path) != FORMAT:
                raise BadRun(
                    f"{path} has format {_format(path)!r}; this zoo reads {FORMAT}: go on with the version that wrote "
                    f"it, or choose another --out, or to go on from the checkpoint before it: rm -r {path}"
                )
            reason, said = torn(path, deep=deep), _manifest(path)
            if said is not None and not reason:
                found = Checkpoint(path, said["step"], said["facts"])
                break
            passed.append((path, reason))
        then = "there is no whole one" if found is None else f"using {found.folder.name}"
        level = logging.WARNING if deep else logging.DEBUG
        for path, reason in passed:
            log.log(level, "checkpoint %s is not whole (%s); %s", path, reason, then)
        return found


def torn(folder: Path, *, deep: bool = True) -> str:
    """Return why a checkpoint is not whole, or "". With `deep` the sha256 of every file is checked too."""
    said = _manifest(folder)
    if said is None:
        return "no readable manifest"
    for name, (size, digest) in said["files"].items():
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                return f"{name} has {found} bytes, not {size}"
            if deep and _digest(path) != digest:
                return f"{name} is damaged"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:  # a broken disk
            return f"{name} cannot be read ({error.strerror})"
    return ""


def lacking(names: Collection[str]) -> list[str]:
    """Return which files of an engine's checkpoint are not among `names`; all belong to each that is."""
    sizes = {int(match[1]) for match in map(_PIECE.fullmatch, names) if match}
    if not sizes and "engine.json" not in names:
        return []  # no engine's
    wanted = [f"state-{i:05d}-of-{size:05d}.safetensors" for size in sorted(sizes or {1}) for i in range(size)]
    return [name for name in ("engine.json", *wanted) if name not in names]


def _written(folder: Path, world: Processes) -> list[str]:
    """Return the names of the files in a folder, on every rank.

    A process sees what it wrote itself, and on a shared disk perhaps not yet all that others wrote: to what rank 0 sees
    each adds what it sees besides.
    """
    here = sorted(path.name for path in folder.iterdir())
    seen = world.share(here)
    more = world.gather([name for name in here if name not in seen])
    return sorted({*seen, *(name for names in more for name in names)})


def _manifest(folder: Path) -> dict[str, Any] | None:
    """Return step, facts and files as the manifest has them; None where it is missing, cut short or no manifest."""
    try:
        said = json.loads((folder / MANIFEST).read_text())
        files = {str(name): (int(size), str(digest)) for name, (size, digest) in said["files"].items()}
        return {"step": int(said["step"]), "facts": dict(said["facts"]), "files": files}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _format(folder: Path) -> Any:
    """Return the format its manifest says; ours where it says none, or cannot be read and so is torn."""
    try:
        return json.loads((folder / MANIFEST).read_text()).get("format", FORMAT)
    except (OSError, ValueError, AttributeError):
        return FORMAT


def _empty(folder: Path) -> None:
    """Make the folder, without what a killed save may have left in it."""
    _delete(folder)
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
    """Remove a checkpoint, first taking it out of sight, so that a kill half-way leaves no torn one."""
    gone = path.with_name(f".gone-{path.name}")
    _delete(gone)
    os.rename(path, gone)
    _delete(gone)


def _delete(path: Path) -> None:
    """Delete a hidden folder; what cannot be deleted now is tried again at the next save."""
    shutil.rmtree(path, ignore_errors=True)

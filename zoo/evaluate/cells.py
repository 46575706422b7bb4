"""What a sweep compares, and the file that keeps what was seen.

A cell is one run, sampled in one way, on the first captions of one split: one picture a caption. Picture i starts from
the same random numbers in every cell, so verdicts on it are paired. Finished cells are kept, with all that decides
them, and are not drawn again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import attrs

from zoo.data.drawing import SIDE
from zoo.errors import BadData
from zoo.evaluate.judge import judge_of
from zoo.files import atomic_text
from zoo.registry import open_dataset
from zoo.runs import RunFolder
from zoo.weights import sha256

FORMAT = 1
"""Of the file that keeps cells."""

Cell = dict[str, Any]
"""`of`, all that decides it; `captions`, their number; `verdicts`, "01..." a caption, or None; `distance` or None;
`real`, accuracy and distance of the captions' own pictures; and how it was seen."""


@attrs.frozen(kw_only=True)
class Way:
    """One way of sampling."""

    changes: tuple[str, ...] = ()
    """As `zoo sample --sampling`: "steps=20", "base.sampler=ddim"; none: the run's own."""
    guidance: float | None = None
    """None: the run's own."""

    @property
    def name(self) -> str:
        """What the changes are called."""
        return " ".join(self.changes) or "own"

    @property
    def strength(self) -> str:
        """What the guidance is called."""
        return "own" if self.guidance is None else f"{self.guidance:g}"


@attrs.frozen(kw_only=True)
class Sweep:
    """What is compared, and on what."""

    runs: Mapping[str, str]
    """Run folder -> its `fingerprint`."""
    data: str
    """Dataset uri, the same for all."""
    splits: tuple[str, ...] = ("validation",)
    changes: tuple[tuple[str, ...], ...] = ((),)
    guidances: tuple[float | None, ...] = (None,)
    captions: int = 128
    """Captions a split, from its first row."""
    feature: str = "pixels"
    """What distances are taken in; see `zoo.evaluate.features`."""
    stage: str | None = None
    """Stage of a cascade whose pictures are looked at; None: the last."""
    pictures: int = 2048
    """Real pictures that distances are taken to, at most."""
    seed: int = 0
    chunk: int = 128
    """Pictures drawn at a time: memory and speed, not the pictures."""

    @property
    def ways(self) -> list[Way]:
        """Every way of sampling; differences are taken to the first."""
        return [Way(changes=changes, guidance=w) for changes in self.changes for w in self.guidances]

    @cached_property
    def prints(self) -> dict[str, str]:
        """Split -> what tells its pictures and captions from any others, as they were when it was first asked."""
        # At one size, whatever the runs': it is to tell other data, and each run says its size itself.
        return {split: open_dataset(self.data, split=split, size=SIDE).fingerprint for split in self.splits}

    @cached_property
    def texts(self) -> dict[str, tuple[str, ...]]:
        """Split -> its captions, as many as are asked for; nothing of data that cannot be judged by them."""
        if judge_of(self.data) is None:
            return {}
        opened = {split: open_dataset(self.data, split=split, size=SIDE) for split in self.splits}
        return {split: tuple(islice(data.texts(), self.captions)) for split, data in opened.items()}

    @property
    def places(self) -> list[tuple[str, str, Way]]:
        """(run, split, way) of every cell; ways of one run and split stand together."""
        return [(run, split, way) for run in self.runs for split in self.splits for way in self.ways]


def fingerprint(run: str) -> str:
    """Return what tells a run from any other: the sha256 of its config and of its parts' files.

    Raises:
        BadRun: there is no run.
    """
    folder = RunFolder(run)
    parts = {path.name: sha256(path) for path in sorted(folder.path.glob("*.safetensors"))}
    return hashlib.sha256(json.dumps([folder.data["config"], parts], sort_keys=True).encode()).hexdigest()


class Kept:
    """Finished cells, and the file that they and what was last made of them are in.

    Raises:
        BadData: the file is not one of these.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._cells = path, dict[str, Cell]()
        if path.is_file():
            for cell in _cells(path):
                self.add(cell)

    def add(self, cell: Cell) -> None:
        """Take in a cell, in the place of an earlier one of the same."""
        self._cells[_key(cell["of"])] = cell

    def get(self, of: Mapping[str, Any]) -> Cell | None:
        """Return the cell decided by `of`, if it is finished."""
        return self._cells.get(_key(of))

    def write(self, report: Mapping[str, Any]) -> None:
        """Write a report and all cells, whole or not at all."""
        data = {"format": FORMAT, **report, "cells": list(self._cells.values())}
        atomic_text(self.path, json.dumps(data, indent=1) + "\n")


def _key(of: Mapping[str, Any]) -> str:
    return json.dumps(of, sort_keys=True)


def _cells(path: Path) -> list[Cell]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        data = None
    if not isinstance(data, dict) or data.get("format") != FORMAT or "cells" not in data:
        raise BadData(f"{path} is there and holds no results of `zoo sweep`; give another --out, or move it away")
    return data["cells"]


def identity(sweep: Sweep, run: str, split: str, way: Way) -> dict[str, Any]:
    """Return all that decides a cell. The run's folder does not: it may be moved.

    Raises:
        UnknownName, BadData: there is no such data.
    """
    return {
        "run": sweep.runs[run], "how": list(way.changes), "guidance": way.guidance, "stage": sweep.stage,
        "data": sweep.data, "print": sweep.prints[split], "split": split, "captions": sweep.captions,
        "seed": sweep.seed, "feature": sweep.feature, "pictures": sweep.pictures,
    }  # fmt: skip


def finished(sweep: Sweep, kept: Kept) -> Iterator[tuple[str, str, Way, Cell]]:
    """Yield (run, split, way, cell) of every finished cell of a sweep, in its order."""
    for run, split, way in sweep.places:
        cell = kept.get(identity(sweep, run, split, way))
        if cell is not None:
            yield run, split, way, cell

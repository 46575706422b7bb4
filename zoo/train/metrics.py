"""What a run writes about itself: `metrics.jsonl`, TensorBoard where it is installed, and curves."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

NOT_CURVES = frozenset({"part", "step", "seconds", "skipped", "settling"})

SCALE = "scale/"
"""Begins the names of gradient scales, which are drawn in one picture of their own."""


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


class Metrics:
    """Appends one object a step to `metrics.jsonl`.

    Args:
        folder: the run folder.
        part: name of the stage.
        start: updates done already; rows of this part beyond it, left by a killed run, are dropped, so that no step
            is listed twice.
        writes: False on all processes of a run but one: nothing is written.
    """

    def __init__(self, folder: Path, part: str, start: int, *, writes: bool = True) -> None:
        self.path, self.part = folder / "metrics.jsonl", part
        self._file: TextIO | None = None
        self._board: Any = None
        if writes:
            self._truncate(start)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
            self._board = _board(folder / "tensorboard" / part, start)

    def _truncate(self, start: int) -> None:
        if not self.path.exists():
            return
        rows = [row for row in read_rows(self.path) if row.get("part") != self.part or row.get("step", 0) <= start]
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        beside.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        os.replace(beside, self.path)

    def write(self, step: int, values: Mapping[str, float]) -> dict[str, Any]:
        """Write the row of update `step` (counted from 1) and return it; what is not finite is written as null."""
        numbers = {name: x if math.isfinite(x) else None for name, x in values.items()}
        row = {"part": self.part, "step": step, **numbers}
        if self._file is not None:
            self._file.write(json.dumps(row, allow_nan=False) + "\n")
        if self._board is not None:
            for name, x in numbers.items():
                if x is not None:
                    self._board.add_scalar(f"{self.part}/{name}", x, step)
        return row

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path, start: int) -> Any:
    """Return a TensorBoard writer, or None where the package is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=start + 1)


def draw_curves(folder: Path, part: str) -> Path | None:
    """Draw every number of a part over its steps into `<run>/curves-<part>.png`.

    Returns the picture's path, or None where matplotlib is missing or there is nothing to draw yet.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row.get("part") == part]
    found = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in NOT_CURVES]
    names = [name for name in found if not name.startswith(SCALE)]
    draw_scales(rows, [name for name in found if name.startswith(SCALE)], folder / f"scales-{part}.png")
    if not rows or not names:
        return None
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.8 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    for place, name in enumerate(names):
        axes = figure.add_subplot(lines, columns, place + 1)
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        axes.plot([x for x, _ in points], [y for _, y in points], linewidth=0.8)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    figure.suptitle(f"{part}, over updates", fontsize=10)
    return _save(figure, folder / f"curves-{part}.png")


def draw_scales(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path) -> Path | None:
    """Draw log2 of every block's gradient scale over updates, the first block darkest violet, the last yellow.

    As in A. Ramesh et al.: Zero-Shot Text-to-Image Generation, arXiv:2102.12092, appendix D. Returns None without a
    picture where there are no scales. Needs matplotlib.
    """
    if not names:
        return None
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, name in enumerate(names):
        points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        axes.plot(*zip(*points, strict=True), linewidth=0.8, color=colormaps["plasma"](i / max(1, len(names) - 1)))
    axes.set_xlabel("updates", fontsize=9)
    axes.set_ylabel("log2 of the gradient scale", fontsize=9)
    axes.set_title(f"{len(names)} blocks, from the first (violet) to the last (yellow)", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> Path:
    """Write a picture that appears whole."""
    beside = path.with_name(f".{path.name}")
    figure.savefig(beside, format="png", dpi=100)
    os.replace(beside, path)
    return path

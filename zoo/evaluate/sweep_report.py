"""What is said of a sweep: a row a cell, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data.drawing import SIDE
from zoo.evaluate.cells import Cell, Kept, Sweep, Way, finished
from zoo.evaluate.intervals import paired, wilson
from zoo.evaluate.kinds import HEADS, aligned, by_kind
from zoo.evaluate.kinds import row as kinds_row

Row = dict[str, Any]
Report = dict[str, Any]


def report_of(sweep: Sweep, kept: Kept) -> Report:
    """Return the finished cells of a sweep in its order.

    Returns:
        What was asked, and `rows`: each a cell, with its 95% interval, what was obeyed by kind of caption, `kinds` (see
        `zoo.evaluate.kinds`), and, of all but the first way of a run and split, its `difference` to that one, with a
        paired interval (see `zoo.evaluate.intervals`; None where no caption differs, for which it says nothing), and
        how many captions were gained and lost.
    """
    names, rows = names_of(list(sweep.runs)), list[Row]()
    first: dict[tuple[str, str], tuple[Way, Cell]] = {}
    for run, split, way, cell in finished(sweep, kept):
        row = {"run": run, "name": names[run], "split": split, **_row(way, cell)}
        if cell["verdicts"] is not None and split in sweep.texts:
            row["kinds"] = by_kind(sweep.texts[split], (x == "1" for x in cell["verdicts"]))
        if way == sweep.ways[0]:
            first[run, split] = way, cell
        elif (run, split) in first and cell["verdicts"] is not None:
            row["difference"] = _difference(cell, *first[run, split])
        rows.append(row)
    asked = {name: getattr(sweep, name) for name in ("data", "captions", "seed", "feature", "stage")}
    return {**asked, "splits": list(sweep.splits), "rows": rows}


def names_of(runs: Sequence[str]) -> dict[str, str]:
    """Return what runs are called: the folder's name where no other has it, or else its path."""
    last = {run: Path(run).resolve().name for run in runs}
    return {run: name if list(last.values()).count(name) == 1 else run for run, name in last.items()}


def _row(way: Way, cell: Cell) -> Row:
    row = {"how": way.name, "guidance": way.guidance, **{k: v for k, v in cell.items() if k not in ("of", "verdicts")}}
    if cell["verdicts"] is None:
        return row
    good, count = cell["verdicts"].count("1"), cell["captions"]
    return {**row, "obeyed": good, "accuracy": good / count, "interval": wilson(good, count)}


def _difference(cell: Cell, way: Way, first: Cell) -> dict[str, Any]:
    ours, theirs = (np.array(list(found["verdicts"])) == "1" for found in (cell, first))
    found: dict[str, Any] = {
        "to": {"how": way.name, "guidance": way.guidance},
        "gained": int((ours & ~theirs).sum()),
        "lost": int((theirs & ~ours).sum()),
    }
    if len(ours) > 1:
        mean, low, high = paired(ours, theirs)
        found |= {"mean": mean, "interval": (low, high) if found["gained"] or found["lost"] else None}
    return found


def lines(report: Report) -> list[str]:
    """Return a report as lines to print."""
    rows = report["rows"]
    judged = any("accuracy" in row for row in rows)
    heads = ["run", "how", "guidance", "split", *(["accuracy", "95%"] if judged else []), "distance"]
    table = [[*heads, *(["to the first", "95%", "gained, lost"] if any("difference" in row for row in rows) else [])]]
    table += [_cells(row, judged) for row in rows]
    return [*aligned(table), *_by_kind(rows), *_notes(report, judged)]


def _by_kind(rows: Sequence[Row]) -> list[str]:
    """Return a second table, of what was obeyed of each kind of caption; nothing where nobody judged."""
    counted = [(row, kinds_row(row["kinds"])) for row in rows if "kinds" in row]
    heads = [head for head in HEADS if any(head in text for _, text in counted)]
    if not heads:
        return []
    table = [["run", "how", "guidance", "split", *heads]]
    table += [[*_place(row), *(text.get(head, "") for head in heads)] for row, text in counted]
    return ["", *aligned(table), ""]


def _place(row: Row) -> list[str]:
    strength = f"own, {row['guided']:g}" if row["guidance"] is None else f"{row['guidance']:g}"
    return [row["name"], row["how"], strength, row["split"]]


def _cells(row: Row, judged: bool) -> list[str]:
    text = _place(row)
    if judged:
        text += [f"{row['accuracy']:.1%}", _interval(row, "{:.1f}")] if "accuracy" in row else ["", ""]
    text.append("" if row["distance"] is None else f"{row['distance']:.4g}")
    if "mean" in row.get("difference", ()):
        d = row["difference"]
        interval = "no caption differs" if d["interval"] is None else _interval(d, "{:+.1f}")
        text += [f"{100 * d['mean']:+.1f}", interval, f"+{d['gained']} -{d['lost']}"]
    return text


def _interval(row: Row, form: str) -> str:
    return " to ".join(form.format(100 * x) for x in row["interval"])


def _notes(report: Report, judged: bool) -> Iterator[str]:
    """Yield what the numbers are, and what real pictures have in the place of the generated ones."""
    rows = report["rows"]
    if any("kinds" in row for row in rows):
        yield "the second table: captions obeyed/asked, by kind, and by shape those of one object"
    if judged and any("difference" in row for row in rows):
        yield "to the first: difference of accuracy to the first way of the run and split, in points, paired by caption"
    for row in {(row["split"], row["side"]): row for row in rows}.values():
        which = "others" if row["other_rows"] else "those of the captions"
        real = [] if row["real"]["accuracy"] is None else [f"accuracy {row['real']['accuracy']:.1%}"]
        real += [] if row["real"]["distance"] is None else [f"distance {row['real']['distance']:.4g}"]
        beside = f"; real pictures in their place: {', '.join(real)}" if real else ""
        yield (
            f"{row['split']}: {row['captions']} captions; Fréchet distance to {row['reference']} real pictures "
            f"({which}), {row['about']}{beside}"
        )
    stage = "" if report["stage"] is None else f" of stage {report['stage']}"
    for side in sorted({row["side"] for row in rows if stage or row["side"] < SIDE}):
        enlarged = f"; both are enlarged to {SIDE} px to be looked at" if side < SIDE else ""
        yield f"pictures{stage} have {side} px, and real ones are made as small{enlarged}"

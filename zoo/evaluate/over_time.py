"""What a system's pictures were worth at moments of its training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import BadRun, UnknownName
from zoo.evaluate.report import Report, evaluate_run
from zoo.train.moments import load, moments
from zoo.train.stage import recipe_of

LOOKED_AT = 512
"""Pictures of the validation loss."""


def over_time(
    generator: Any, run: Path, part: str, data: str, *, splits: Sequence[str] | None = None, captions: int = 256,
    seed: int = 0, chunk: int = 128, bar: Callable[[int, str, str], Any],
) -> Report:  # fmt: skip
    """Return loss and accuracy of single samples at each checkpoint that a run has kept of a stage.

    Args:
        generator: the run's whole system; it is left with the last weights.
        run: its folder.
        part: the stage.
        data, splits, captions, seed, chunk, bar: see `evaluate_run`.

    Raises:
        UnknownName: there is no such stage.
        BadRun: none of its checkpoints is there, or the stage has no loss.
    """
    if part not in generator.stages:
        raise UnknownName("stage", part, generator.stages, f"'{generator.card}' has {', '.join(generator.stages)}")
    rows, usual = [], recipe_of(generator, part).batch
    for moment in moments(run, part):
        load(generator, part, moment)
        found = evaluate_run(
            generator, data, splits=splits, captions=captions, candidates=(1,), distances=(), pictures=LOOKED_AT,
            seed=seed, chunk=chunk, bar=bar,
        )  # fmt: skip
        if "loss" not in found.get(part, {}):
            raise BadRun(
                f"{run}: stage '{part}' has no loss to follow, or reads parts that are not trained; take another "
                f"stage, or train them: python scripts/train.py --model {run} --resume"
            )
        judged = found.get("accuracy", {})
        row = {"step": moment.step, "pictures": moment.step * (moment.batch or usual), "loss": found[part]["loss"]}
        rows.append({**row, "accuracy": {s: judged[s]["best_of_1"] for s in found.get("splits", ()) if s in judged}})
    return {"run": str(run), "part": part, "data": data, "captions": captions, "seed": seed, "checkpoints": rows}


def lines(report: Report) -> list[str]:
    """Return a report as lines to print."""
    splits = list(report["checkpoints"][-1]["accuracy"])
    head = f"{'updates':>9} {'pictures':>9} {'loss':>8}" + "".join(f" {split:>11}" for split in splits)
    return [f"{report['run']}: {report['part']}, {report['data']}, {report['captions']} captions a split", head] + [
        f"{row['step']:>9} {row['pictures']:>9} {row['loss']:>8.4f}"
        + "".join(f" {row['accuracy'][split]:>11.1%}" for split in splits)
        for row in report["checkpoints"]
    ]


def draw(report: Report, path: Path) -> None:
    """Draw accuracy, and loss where there is none, against the pictures seen."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes, rows = figure.subplots(), report["checkpoints"]
    seen = [row["pictures"] for row in rows]
    for split in rows[-1]["accuracy"]:
        axes.plot(seen, [row["accuracy"][split] for row in rows], marker="o", markersize=4, label=split)
    if not rows[-1]["accuracy"]:
        axes.plot(seen, [row["loss"] for row in rows], marker="o", markersize=4, label="validation loss")
    axes.set(xlabel="pictures seen in training", ylabel="accuracy" if rows[-1]["accuracy"] else "loss")
    axes.set_title(f"{report['run']}, {report['part']}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)

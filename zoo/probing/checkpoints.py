"""Probe accuracy against validation loss over the checkpoints that a run has kept. [1] figure 3

Runs keep their newest two unless `scripts/train.py --keep` says more. The weights are those that would be saved: the
moving average where there is one.

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from zoo.data.base import fingerprint
from zoo.errors import BadRun
from zoo.evaluate.figures import loss_figures
from zoo.probing.features import Subject
from zoo.probing.probe import Ask, Bar, Report, objective, probe
from zoo.probing.results import whole
from zoo.probing.splits import Splits
from zoo.registry import open_dataset
from zoo.runs import RunFolder
from zoo.train.checkpoint import MANIFEST, torn
from zoo.train.shards import Shards
from zoo.weights import load_into, load_tensors, read_metadata

PICTURES = 512
"""That the validation loss is a mean over."""


@attrs.frozen
class Point:
    """Weights of a prior at one moment of its training."""

    step: int
    path: Path
    """A checkpoint's folder, or the file of the finished part."""


def points(run: Path) -> list[Point]:
    """Return a run's whole checkpoints of its prior, oldest first, and the finished part where none is as old.

    Raises:
        BadRun: there are none.
    """
    found = [p for p in sorted((run / "checkpoints" / "prior").glob("step-*")) if p.name[5:].isdigit()]
    whole = [Point(int(path.name[5:]), path) for path in found if int(path.name[5:]) and not torn(path, deep=False)]
    done = RunFolder(run).part_path("prior")
    if done.is_file():
        step = int(read_metadata(done).get("steps", 0))
        if step not in {point.step for point in whole}:
            whole.append(Point(step, done))
    if not whole:
        raise BadRun(f"'{run}' has no whole checkpoint of its prior in {run / 'checkpoints' / 'prior'}")
    return whole


def at(subject: Subject, point: Point) -> Subject:
    """Load the weights of a moment into the run's prior; return the run as it was then."""
    if point.path.is_file():
        tensors, _ = load_tensors(point.path)
        state = point.path.read_bytes()
    else:
        with Shards(point.path) as shards:
            names = [name for name in shards.names("weights") if name.startswith("prior.")]
            tensors = {name.removeprefix("prior."): shards.lazy(name).fetch() for name in names}
        state = (point.path / MANIFEST).read_bytes()
    load_into(subject.prior, tensors, point.path)
    subject.generator.mark_ready("prior")
    subject.generator.eval()
    return attrs.evolve(subject, prints=fingerprint(hashlib.sha256(state).hexdigest(), *_codebook(subject)))


def _codebook(subject: Subject) -> Iterator[str]:
    folder = RunFolder(subject.path)
    if folder.finished("codebook"):
        yield folder.fingerprint("codebook")


def over_checkpoints(subject: Subject, found: Splits, ask: Ask, *, bar: Bar, pictures: int = PICTURES) -> Report:
    """Return, for each checkpoint, the validation loss, and the accuracy of the layer that validation chooses.

    No features are kept on the disk: there would be as many as checkpoints.

    Args:
        subject: the run.
        found: pictures and labels.
        ask: what is asked of each checkpoint.
        bar: makes progress bars.
        pictures: validation pictures of the loss, at most.

    Raises:
        BadRun: the run has no checkpoints.
    """
    rows: list[dict[str, Any]] = []
    validation = open_dataset(found.train.data.uri, split="validation", size=subject.size)
    for point in points(subject.path):
        then = at(subject, point)
        losses = loss_figures(then.generator, "prior", validation, pictures, ask.seed, ask.chunk)
        report = probe(then, found, ask, bar=bar)
        rows.append({"step": point.step, "loss": losses["loss"], **report["best"]})
    return {
        "run": str(subject.path), "card": subject.generator.card, "objective": objective(subject),
        "params": sum(p.numel() for p in subject.prior.parameters()),
        "data": whole(found.train.data.uri), "folded": found.folded,
        "solver": ask.solver, "seed": ask.seed, "loss_pictures": min(pictures, len(validation)), "checkpoints": rows,
    }  # fmt: skip


def lines(report: Report) -> list[str]:
    """Return a report as lines to print."""
    head = f"{'step':>9} {'validation loss':>16} {'best layer':>11} {'accuracy':>9}"
    return [f"{report['run']}: {report['card']}, {report['data']}", head] + [
        f"{row['step']:>9} {row['loss']:>16.4f} {row['layer']:>11} {row['accuracy']:>9.1%}"
        for row in report["checkpoints"]
    ]

"""Probe accuracy against validation loss over the checkpoints that a run has kept. [1] figure 3

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import attrs

from zoo.data.base import fingerprint
from zoo.evaluate.figures import loss_figures
from zoo.probing.features import Subject
from zoo.probing.probe import Ask, Bar, Report, objective, probe
from zoo.probing.results import whole
from zoo.probing.splits import Splits
from zoo.registry import open_dataset
from zoo.runs import RunFolder
from zoo.train.moments import Moment, load, moments

PICTURES = 512
"""That the validation loss is a mean over."""


def at(subject: Subject, moment: Moment) -> Subject:
    """Load the weights of a moment into the run's prior; return the run as it was then."""
    load(subject.generator, "prior", moment)
    return attrs.evolve(subject, prints=fingerprint(hashlib.sha256(moment.state).hexdigest(), *_codebook(subject)))


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
    for moment in moments(subject.path, "prior"):
        then = at(subject, moment)
        losses = loss_figures(then.generator, "prior", validation, pictures, ask.seed, ask.chunk)
        report = probe(then, found, ask, bar=bar)
        rows.append({"step": moment.step, "loss": losses["loss"], **report["best"]})
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

"""The probe of one run: how well a linear classifier tells classes from each of its layers.

Nothing is chosen by the test pictures: penalty, learning rate and best layer are the validation pictures' choice.

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from zoo.errors import ConfigError
from zoo.probing.features import Features, Subject, kept, shape, vote
from zoo.probing.linear import SOLVERS, STEPS, Choice, Labelled, accuracy, balanced, standard
from zoo.probing.results import whole
from zoo.probing.splits import Splits

Report = dict[str, Any]
Bar = Callable[[int, str, str], Any]
"""Makes a progress bar of (total, what, unit)."""


@attrs.frozen(kw_only=True)
class Ask:
    """What is asked of a run."""

    solver: str = "lbfgs"
    """A key of `zoo.probing.linear.SOLVERS`."""
    layers: tuple[int, ...] | None = None
    """Layers that are probed, the only ones that take memory; None: all."""
    labels_per_class: tuple[int, ...] = ()
    """Labels of each class that the best layer's classifier is fitted on, besides all."""
    draws: int = 5
    """Draws of such labels."""
    concat: int = 0
    """Of these layers, how many round the best are put side by side; 0: none. [1] took 5."""
    masks: int = 5
    """Independent masks that vote, for a prior that is not causal."""
    steps: int = STEPS
    """SGD updates."""
    seed: int = 0
    """Decides masks, ties, draws of labels and of SGD's batches."""
    chunk: int = 64
    """Pictures at a time."""


@attrs.frozen(eq=False)
class Layer:
    """The pictures of each split as one layer, or several side by side, has them; standardised."""

    train: Labelled
    validation: Labelled
    tests: tuple[Labelled, ...]
    """One for each mask."""

    def choose(self, ask: Ask, classes: int) -> Choice:
        """Return what the validation pictures choose."""
        solver = SOLVERS[ask.solver]
        return solver(self.train, self.validation, classes=classes, seed=ask.seed, steps=ask.steps)


@attrs.frozen(eq=False)
class Sets:
    """The features of each split."""

    train: Features
    validation: Features
    test: Features

    def layer(self, places: range) -> Layer:
        """Return layers side by side, with the mean and deviation that they have in training."""
        train = self.train.joined(places)
        same = standard(train)
        masks = range(len(self.test.values))
        return Layer(
            Labelled(same(train), self.train.labels),
            Labelled(same(self.validation.joined(places)), self.validation.labels),
            tuple(Labelled(same(self.test.joined(places, mask)), self.test.labels) for mask in masks),
        )


def probe(subject: Subject, found: Splits, ask: Ask, *, bar: Bar, folder: Path | None = None) -> Report:
    """Return accuracy by layer, and what else is asked.

    Args:
        subject: the run.
        found: pictures and labels.
        ask: what is asked.
        bar: makes progress bars.
        folder: where features are kept; None: nowhere.

    Raises:
        ConfigError: there is no such layer.
        BadData: a class has too few labels.
    """
    layers = _asked(ask.layers, shape(subject)[0])
    sets = features(subject, found, layers, ask, bar=bar, folder=folder)
    classes = len(found.classes)
    report: Report = {
        "run": str(subject.path), "card": subject.generator.card, "objective": objective(subject),
        "params": sum(p.numel() for p in subject.prior.parameters()), "features": sets.train.values.shape[-1],
        "data": whole(found.train.data.uri), "classes": classes, "solver": ask.solver, "seed": ask.seed,
        "pictures": {"train": len(found.train), "validation": len(found.validation), "test": len(found.test)},
        "test": found.note, "folded": found.folded,
        "most_common": float(np.bincount(sets.test.labels).max() / len(found.test)),
    }  # fmt: skip
    best: tuple[float, int, Choice] | None = None
    report["layers"] = []
    with bar(len(layers), "probing", "layer") as progress:
        for place, layer in enumerate(layers):
            at = sets.layer(range(place, place + 1))
            choice = at.choose(ask, classes)
            report["layers"].append({"layer": layer, **_judged(at, choice, ask, found)})
            if best is None or choice.accuracy > best[0]:
                best = choice.accuracy, place, choice
            progress.update(1)
    assert best is not None
    _, place, choice = best
    report["best"] = report["layers"][place]
    if ask.concat:
        around = beside(place, ask.concat, len(layers))
        wide = sets.layer(around)
        said = _judged(wide, wide.choose(ask, classes), ask, found)
        report["concat"] = {"layers": [layers[i] for i in around], "features": wide.train.x.shape[1], **said}
    if ask.labels_per_class:
        report["labels_per_class"] = list(_few(sets.layer(range(place, place + 1)), choice, ask, found))
    return report


def objective(subject: Subject) -> str:
    """Return what the prior has learnt to do: "autoregressive", or "masked"."""
    return "masked" if subject.masked else "autoregressive"


def features(
    subject: Subject, found: Splits, layers: Sequence[int], ask: Ask, *, bar: Bar, folder: Path | None
) -> Sets:  # fmt: skip
    """Return the features of every split, each picture read once; of the test pictures with every mask."""
    how = {"seed": ask.seed, "chunk": ask.chunk}
    parts = ((found.train, 1), (found.validation, 1), (found.test, ask.masks))
    with bar(sum(len(part) for part, _ in parts), "features", "picture") as progress:
        read = [kept(subject, x, layers, folder, masks=masks, advance=progress.update, **how) for x, masks in parts]
    return Sets(*read)


def beside(best: int, count: int, layers: int) -> range:
    """Return `count` neighbouring layers, all where there are no more, with the best as near the middle as can be."""
    count = min(count, layers)
    start = max(0, min(best - count // 2, layers - count))
    return range(start, start + count)


def _asked(asked: Sequence[int] | None, count: int) -> list[int]:
    if asked is None:
        return list(range(count))
    wrong = [layer for layer in asked if not 0 <= layer < count]
    if wrong:
        raise ConfigError(f"--layers: this model has layers 0 to {count - 1}, there is no {wrong[0]}")
    return sorted(set(asked))


def _judged(at: Layer, choice: Choice, ask: Ask, found: Splits) -> Report:
    """Return the accuracies of a classifier, validation folded in where it may; of several masks also the vote's."""
    predict = choice.fit(at.train + at.validation if found.folded else at.train)
    told = np.stack([predict(test.x) for test in at.tests])
    truth = at.tests[0].y
    said = {"accuracy": accuracy(told[0], truth), "validation": choice.accuracy, **choice.setting}
    if len(told) > 1:
        said["votes"] = accuracy(vote(told, found.test.rows, ask.seed, len(found.classes)), truth)
    return said


def _few(at: Layer, choice: Choice, ask: Ask, found: Splits) -> Iterator[Report]:
    """Yield the accuracies of few labels: the best layer, with the setting that all labels have chosen. [1] table 4"""
    for each in ask.labels_per_class:
        draws = []
        for draw in range(ask.draws):
            rows = balanced(at.train.y, each, ask.seed, draw, found.classes)
            draws.append(accuracy(choice.fit(at.train[rows])(at.tests[0].x), at.tests[0].y))
        spread = float(np.std(draws, ddof=1)) if len(draws) > 1 else 0.0
        yield {"labels": each, "mean": float(np.mean(draws)), "spread": spread, "draws": draws}


def lines(report: Report) -> list[str]:
    """Return a report as lines to print."""
    n = report["pictures"]
    chose = f" and {n['validation']} that chose" if report["folded"] else f" ({n['validation']} others chose)"
    title = f"{report['run']}: {report['card']}, {report['objective']}, {report['data']}, {report['classes']} classes"
    text = [
        title,
        f"fitted on {n['train']} pictures{chose}, judged on {n['test']}: {report['test']}; "
        f"the most common class is {report['most_common']:.1%} of them",
    ]
    votes = "votes" in report["best"]
    text.append(f"{'layer':>7} {'accuracy':>9} {'votes':>9} {'validation':>11}" if votes else
                f"{'layer':>7} {'accuracy':>9} {'validation':>11}")  # fmt: skip
    show = partial(_row, votes=votes)
    text += [show(str(row["layer"]), row, "  best" if row is report["best"] else "") for row in report["layers"]]
    if "concat" in report:
        layers = report["concat"]["layers"]
        text.append(
            show(f"{layers[0]} to {layers[-1]}", report["concat"], f"  {report['concat']['features']} features")
        )
    for few in report.get("labels_per_class", ()):
        count = len(few["draws"])
        text.append(
            f"{few['labels']} labels a class, layer {report['best']['layer']}: {few['mean']:.1%}, standard deviation "
            f"{few['spread']:.1%} over {count} draws"
        )
    if report.get("labels_per_class"):
        setting = "penalty" if report["solver"] == "lbfgs" else "learning rate"
        text.append(f"(of few labels too, layer and {setting} are what all labels have chosen)")
    return text


def _row(name: str, row: Report, note: str, *, votes: bool) -> str:
    voted = f" {row['votes']:>9.1%}" if votes else ""
    setting = ", ".join(f"{key} {row[key]:g}" for key in ("C", "lr") if key in row)
    return f"{name:>7} {row['accuracy']:>9.1%}{voted} {row['validation']:>11.1%}  {setting}{note}"

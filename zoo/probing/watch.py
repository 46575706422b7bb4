"""Validation while fine-tuning: what is best so far, and when it is enough."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from zoo.files import atomic_text
from zoo.probing.classifier import Classifier
from zoo.probing.splits import Splits
from zoo.train.metrics import read_rows
from zoo.weights import save_tensors

JUDGED = "validation"
"""What the rows of `metrics.jsonl` are called that hold validation accuracies."""
BEST = "best.safetensors"
"""Weights of the best validation accuracy so far, in `checkpoints/`."""


@attrs.frozen(kw_only=True)
class Settings:
    """How it is trained."""

    steps: int = attrs.field(default=1000)
    """Updates, at most."""
    lr: float | None = None
    """None: a tenth of the pre-training's."""
    batch: int | None = None
    """None: the pre-training's."""
    patience: int = 5
    """Validations in a row without a better accuracy or a lower loss before it stops."""
    every: int | None = None
    """Updates between two validations; None: a tenth of `steps`."""
    looks: int | None = None
    """Pictures of a validation; 0: all there are, None: 128 times the batch. A picture that is looked at costs a third
    of one that is trained on, so that a validation costs at most what some forty updates do."""
    masks: int = 5
    """Masks that vote at the end, for a prior that has learnt from masked codes."""
    seed: int = 0
    resume: bool = False
    """Go on from the newest checkpoint."""

    @property
    def pause(self) -> int:
        """Updates between two validations."""
        return self.every or max(1, self.steps // 10)


class Enough(Exception):
    """Validation has not been better for long enough."""


class Watch:
    """Validates while training, keeps the best weights, and ends it."""

    def __init__(self, classifier: Classifier, found: Splits, settings: Settings, out: Path) -> None:
        self.classifier, self.found, self.settings, self.out = classifier, found, settings, out

    @property
    def path(self) -> Path:
        """Where the best weights are."""
        return self.out / "checkpoints" / BEST

    def rows(self) -> list[dict[str, Any]]:
        """Return the validations so far, oldest first."""
        return [row for row in read_rows(self.out / "metrics.jsonl") if row.get("part") == JUDGED]

    def begin(self, start: int) -> None:
        """Forget validations beyond update `start`, from which training goes on, and at 0 begin with one."""
        path = self.out / "metrics.jsonl"
        rows = [r for r in read_rows(path) if r.get("part") != JUDGED or 0 < start >= r["step"]]
        atomic_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        if start == 0:
            self.judge(0)

    def told(self, step: int, row: Mapping[str, Any]) -> None:
        """Called after every update."""
        if step % self.settings.pause and step != self.settings.steps:
            return
        self.judge(step)
        self.classifier.prior.train()
        self.classifier.head.train()
        rows = self.rows()
        losses = [x["loss"] if math.isfinite(x["loss"]) else math.inf for x in rows]
        best = max(int(np.argmax([x["accuracy"] for x in rows])), int(np.argmin(losses)))
        if len(rows) - 1 - best >= self.settings.patience and step < self.settings.steps:
            raise Enough

    def judge(self, step: int) -> None:
        """Validate; write the row, and the weights where they are the best so far."""
        share, loss = self.measured()
        best = max((row["accuracy"] for row in self.rows()), default=-1.0)
        if share > best:
            save_tensors(self.path, self.classifier.state(), {"step": step, "accuracy": share})
        with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"part": JUDGED, "step": step, "accuracy": share, "loss": loss}) + "\n")

    def measured(self) -> tuple[float, float]:
        """Return validation accuracy and the head's validation loss."""
        told = self.classifier.tell(self.found.validation, seed=self.settings.seed)
        return told.accuracy, told.loss

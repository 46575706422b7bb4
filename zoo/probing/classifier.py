"""A class head on a run's prior, and both as one stage of a system.

The head is one matrix without bias, zero at first, on the mean over positions of the final norm's output ([1] section
2.2, [2]). The loss is L_GEN + L_CLF, the prior's own and the classes' cross-entropy.

Letters: B rows, N codes, D width, C classes, M masks, n pictures.

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
[2] github.com/openai/image-gpt, src/model.py.
"""

from __future__ import annotations

from pathlib import Path

import attrs
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.interfaces import Batch, Cond, Losses
from zoo.probing.features import Advance, Subject, codes_of, masked_codes, null, seen, shape
from zoo.probing.linear import accuracy
from zoo.probing.splits import Part
from zoo.rng import Rng
from zoo.weights import load_into, load_tensors

STAGE = "finetune"
"""The one stage of a classifier."""


@attrs.frozen(eq=False)
class Told:
    """What a classifier says of n pictures."""

    classes: np.ndarray
    """int64 [M,n], with each mask."""
    truth: np.ndarray
    """int64 [n]."""
    loss: float
    """Mean cross-entropy in nats, with the first mask."""

    @property
    def accuracy(self) -> float:
        """Share told right, with the first mask."""
        return accuracy(self.classes[0], self.truth)


class Head(nn.Module):
    """Classes of features: one matrix, zero at first. [2]"""

    card, plugin, version = "class-head", "zoo", "1"

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(classes, width))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B,C] of features [B,D]."""
        return F.linear(features, self.weight)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats."""
        return F.cross_entropy(self(features).float(), labels)


class Classifier:
    """A system whose one stage trains the prior together with a class head."""

    def __init__(self, subject: Subject, classes: int) -> None:
        self.subject, self.base = subject, subject.generator
        self.prior = subject.prior
        self.head = Head(shape(subject)[1], classes).to(self.base.device)
        self.parts = {**self.base.parts, "head": self.head}
        self.stages = {STAGE: ("prior", "head")}

    def reads(self, part: str) -> tuple[str, ...]:
        """Return the roles that are not trained."""
        return self.base.reads("prior")

    def encode(self, part: str, batch: Batch, *, rng: Rng | None = None) -> Batch:
        """Return the batch with its codes."""
        return self.base.encode("prior", batch, rng=rng)

    def loss(self, part: str, batch: Batch, *, step: int, rng: Rng) -> Losses:
        """Return "loss", the sum of "gen", the prior's own, and "clf", the head's; "accuracy" of this batch. [1]"""
        assert batch.codes is not None
        assert batch.labels is not None
        generative, features = self._passed(batch, step, rng)
        classifying = self.head.loss(features, batch.labels)
        right = (self.head(features).argmax(1) == batch.labels).float().mean()
        return {
            "loss": generative + classifying, "gen": generative.detach(), "clf": classifying.detach(),
            "accuracy": right.detach(),
        }  # fmt: skip

    def _passed(self, batch: Batch, step: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """Return the prior's own loss, and the features [B,D] that the head stands on, from one pass where it can be.

        It takes two where the prior has no `loss_and_features` (see `Featured`), and where it reads a condition, which
        it is told for its own loss and must not be told for the head's. The head of a masked prior then sees other
        masks.
        """
        if self.base.reads_what == "nothing" and hasattr(self.prior, "loss_and_features"):
            losses, features = self.prior.loss_and_features(batch, Cond(), step=step, rng=rng)
            return losses["loss"], features
        assert batch.codes is not None
        generative = self.base.loss("prior", batch, step=step, rng=rng)["loss"]
        codes = masked_codes(self.prior, batch.codes, rng.fork("head")) if self.subject.masked else batch.codes
        return generative, self.prior.features(codes, null(self.base, len(codes)))[-1]

    def eval(self) -> None:
        """Leave training."""
        self.prior.eval()
        self.head.eval()

    def state(self) -> dict[str, Tensor]:
        """Return the trained weights, "prior.*" and "head.*"."""
        both = nn.ModuleDict({"prior": self.prior, "head": self.head})
        return both.state_dict()

    def load(self, path: Path) -> None:
        """Put back what `state` returned."""
        load_into(nn.ModuleDict({"prior": self.prior, "head": self.head}), load_tensors(path)[0], path)

    @torch.no_grad()
    def tell(
        self, part: Part, *, masks: int = 1, seed: int = 0, chunk: int = 64, advance: Advance = lambda done: None
    ) -> Told:  # fmt: skip
        """Return the classes told of some pictures."""
        self.eval()
        told, truth, nats = [], [], 0.0
        for start in range(0, len(part), chunk):
            rows = part.rows[start : start + chunk]
            batch = part.data.read(rows.tolist())
            assert batch.labels is not None
            codes = codes_of(self.base, batch)
            shown = [seen(self.subject, codes, rows, mask=mask, seed=seed) for mask in range(masks)]
            logits = [self.head(self.prior.features(x, null(self.base, len(rows)))[-1]) for x in shown]
            told.append(torch.stack(logits).argmax(2).cpu().numpy())
            truth.append(batch.labels.numpy())
            nats += float(F.cross_entropy(logits[0].float().cpu(), batch.labels, reduction="sum"))
            advance(len(rows))
        return Told(np.concatenate(told, 1), np.concatenate(truth), nats / len(part))

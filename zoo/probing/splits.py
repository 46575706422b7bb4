"""Which labelled pictures a probe or a class head is fitted on, chosen by, and judged on.

A dataset with a `heldout` split is judged there and chosen by on `validation`. One whose held-out classes do not occur
in training (`shapes` holds out combinations of colour and shape), or that has no such split, is judged on its
`validation` pictures, and a tenth of the training rows chooses.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import numpy as np

from zoo.data.base import epoch_order
from zoo.errors import BadData, NoSplit
from zoo.interfaces import Dataset
from zoo.registry import open_dataset

CHOOSING = 10
"""One of this many training rows chooses, where the data has no split to spare for it."""
LOOKED_AT = 1000
"""Rows whose labels are read at a time."""
LEAST = 1000
"""Pictures that choose or judge, at most, are a fifth of those fitted on, but not fewer than this."""


@attrs.frozen(eq=False)
class Part:
    """Some rows of a split."""

    data: Dataset
    rows: np.ndarray
    """int64 [n]."""

    def __len__(self) -> int:
        return len(self.rows)

    def labels(self) -> np.ndarray:
        """Return the labels, int64 [n], reading some pictures at a time where it takes pictures."""
        every = (self.rows[i : i + LOOKED_AT] for i in range(0, len(self), LOOKED_AT))
        return np.concatenate([labels_of(self.data, rows) for rows in every])

    def spread(self, most: int) -> Part:
        """Return `most` rows at even distances, for rows may be in the order of their classes; 0, or too many: all."""
        if not 0 < most < len(self):
            return self
        return Part(self.data, self.rows[np.arange(most) * len(self) // most])


@attrs.frozen(eq=False)
class Splits:
    """The pictures."""

    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    note: str
    """Where the test pictures come from, and why."""

    @property
    def folded(self) -> bool:
        """Whether the pictures that chose are fitted on in the end: not where they are more than those asked for."""
        return len(self.validation) <= len(self.train)


def splits(uri: str, *, size: int, pictures: int = 0, transform: str = "fit") -> Splits:
    """Return what to fit on, choose by and judge on.

    Args:
        uri: the dataset.
        size: side of the pictures, in pixels.
        pictures: fitted on at most; 0: all. Rows are the first of a fixed random order.
        transform: of the pictures that are fitted on; the others are read with "fit".

    Raises:
        BadData: the data have no labels, too few pictures, or a split that cannot be read.
    """
    train = open_dataset(uri, split="train", size=size, transform=transform)
    classes = train.classes
    if classes is None:
        raise BadData(
            f"'{uri}' has no class labels; take shapes, cifar10:PATH, mnist:PATH, or folder:PATH, a subfolder a class"
        )
    if len(classes) < 2:
        raise BadData(f"'{uri}' has one class, '{classes[0]}': there is nothing to tell apart")
    most = max(LEAST, pictures // 5) if pictures else 0
    validation = open_dataset(uri, split="validation", size=size)
    order = epoch_order(len(train), 0, 0)
    test, why = _heldout(uri, size, train)
    if test is not None:
        first = Part(train, np.sort(order[: pictures or None]))
        return Splits(first, _first(validation, most), _first(test, most), classes, "heldout")
    if len(train) < CHOOSING:
        raise BadData(f"'{uri}' has {len(train)} training pictures; {CHOOSING} are needed to choose and fit by")
    chooses = min(most or len(train), len(train) // CHOOSING)
    chooser = Part(open_dataset(uri, split="train", size=size), np.sort(order[:chooses]))
    fitted = Part(train, np.sort(order[chooses:][: pictures or None]))
    return Splits(fitted, chooser, _first(validation, most), classes, why)


def _heldout(uri: str, size: int, train: Dataset) -> tuple[Dataset | None, str]:
    """Return the held-out pictures, None where they cannot judge; and what to say of the test pictures."""
    try:
        held = open_dataset(uri, split="heldout", size=size)
    except NoSplit:
        return None, "validation (the data has no heldout split)"
    if len(held) == 0:
        return None, "validation (heldout is empty)"
    asked = {label for some in _labels(held) for label in some}
    for some in _labels(train):
        asked -= some
        if not asked:
            return held, ""
    return None, "validation (heldout has classes that training has not)"


def _labels(data: Dataset) -> Iterator[set[int]]:
    """Yield the labels of all rows, some at a time, in a fixed random order: most classes soon occur."""
    order = epoch_order(len(data), 0, 0)
    for start in range(0, len(data), LOOKED_AT):
        yield set(labels_of(data, order[start : start + LOOKED_AT].copy()).tolist())


def _first(data: Dataset, most: int) -> Part:
    """Return the first rows of a fixed random order, all where `most` is 0."""
    if len(data) == 0:
        raise BadData(f"'{data.uri}' has no {data.split} pictures")
    return Part(data, np.sort(epoch_order(len(data), 0, 0)[: most or None]))


def labels_of(data: Dataset, rows: np.ndarray) -> np.ndarray:
    """Return the labels of rows, int64 [n], without reading pictures where the dataset can."""
    if hasattr(data, "labels"):
        return np.asarray(data.labels(rows), dtype=np.int64)
    labels = data.read(rows.tolist()).labels
    assert labels is not None
    return labels.numpy()

"""What every data source shares: the order of rows, the options of a path, and the making of a `Batch`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image

from zoo.data.transforms import Transform
from zoo.errors import BadData, UnknownName
from zoo.interfaces import Batch
from zoo.rng import Rng

SPLITS = ("train", "validation", "heldout")
"""The splits a source can have."""


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which an epoch reads its rows: a read-only permutation, int64 [n].

    Rows are sorted by a hash of (seed, epoch, row), so the order is the same on every machine and version.
    """
    keys = Rng(seed, torch.arange(n), step=epoch).fork("epoch_order").integers(2**53)
    order = torch.argsort(keys, stable=True).numpy()
    order.setflags(write=False)
    return order


def rows_at(n: int, seed: int, step: int, batch: int) -> np.ndarray:
    """Return the dataset rows of the global batch of update `step`, int64 [batch].

    Epochs of shuffled order follow each other without a gap: a batch may end one and begin the next, and every
    row is read once an epoch. The answer depends on the four arguments alone, so a run resumes with no state.

    Raises:
        BadData: the dataset has no rows.
    """
    if n < 1:
        raise BadData("the dataset has no rows to read")
    position = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    epochs = position // n
    rows = np.empty(batch, dtype=np.int64)
    for epoch in range(int(epochs[0]), int(epochs[-1]) + 1):
        here = epochs == epoch
        rows[here] = epoch_order(n, seed, epoch)[position[here] % n]
    return rows


def check_split(split: str) -> None:
    """Raise UnknownName unless `split` is one of `SPLITS`."""
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS, hint=f"known are {', '.join(SPLITS)}")


def options(source: str, path: str, known: Mapping[str, int]) -> dict[str, int]:
    """Read what follows "source:" as comma-separated options: "n=5000,objects=1", "flags", or a bare number for `n`.

    Args:
        source: the source's name, for messages.
        path: the text after the colon.
        known: option -> default; values are whole numbers of zero or more, a bare word means 1.

    Raises:
        UnknownName: there is no such option.
        BadData: a value is not a whole number.
    """
    values = dict(known)
    for item in filter(None, (part.strip() for part in path.split(","))):
        name, _, text = ("n", "", item) if item.lstrip("+-").isdigit() else item.partition("=")
        if name not in known:
            raise UnknownName(f"option of {source}", name, known, hint=f"known are {', '.join(known)}")
        if not (text or "1").isdecimal():
            raise BadData(f"{source}: '{name}' takes a whole number of zero or more, not '{text}'")
        values[name] = int(text or "1")
    return values


def fingerprint(*parts: Any) -> str:
    """Return 16 hex digits that change whenever one of `parts` does."""
    return hashlib.sha256("\x1f".join(map(repr, parts)).encode("utf-8", "backslashreplace")).hexdigest()[:16]


def random_numbers(transform: Transform, rows: Sequence[int], rng: Rng | None) -> np.ndarray:
    """Return the numbers in (0, 1) that the transform of these rows uses, [B, transform.draws].

    Without an `rng` each row has fixed numbers of its own.
    """
    source = rng if rng is not None else Rng(0, torch.as_tensor(rows, dtype=torch.int64))
    if len(source) != len(rows):
        raise ValueError(f"{len(rows)} rows need as many random rows, not {len(source)}")
    return source.fork("transform").uniform(transform.draws).double().numpy()


def transformed(pictures: Iterable[Image.Image], transform: Transform, size: int, numbers: np.ndarray) -> np.ndarray:
    """Return the transformed pictures, uint8 [B,size,size,3]."""
    out = np.empty((len(numbers), size, size, 3), dtype=np.uint8)
    for i, picture in enumerate(pictures):
        out[i] = transform(picture, size, numbers[i])
    return out


def to_batch(pixels: np.ndarray, texts: Sequence[str] | None, labels: Sequence[int] | None) -> Batch:
    """Return a batch of uint8 pictures [B,S,S,3]: images are float32 [B,3,S,S] in [0, 1]."""
    images = torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))).float().div_(255)
    return Batch(
        images=images,
        texts=None if texts is None else tuple(texts),
        labels=None if labels is None else torch.as_tensor(labels, dtype=torch.int64),
    )

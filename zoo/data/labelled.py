"""What the classic labelled sets of small pictures share: all pictures in memory, one class and one caption each.

Splits: the official training file without a tenth is `train`, that tenth `validation`, the official test file
`heldout`. Which rows the tenth has is decided by a fixed seed, so every run and every machine holds out the same, as
the papers did that tuned on a tenth of CIFAR and trained on the rest ([1] section 3.1).

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import numpy as np
from PIL import Image

from zoo.data import base, transforms
from zoo.errors import BadData
from zoo.interfaces import Batch
from zoo.rng import Rng

HELD = 10
"""One of this many training pictures is validation."""
_SEED = 200608  # of the tenth, never of a run
_VOWELS = "aeiou"


@attrs.frozen(eq=False)
class Pictures:
    """What a file holds."""

    pixels: np.ndarray
    """uint8 [n,H,W] (grey) or [n,H,W,3]."""
    labels: np.ndarray
    """int64 [n]."""


@attrs.frozen
class Source:
    """One of these sets: what it is called, and where a reader gets it."""

    name: str
    classes: tuple[str, ...]
    caption: str
    """With "{}" where the class goes; "{a}" gives it its article."""
    home: str
    """Where to download it by hand."""

    def captions(self) -> tuple[str, ...]:
        """Return the caption of every class."""
        said = [name.replace("_", " ") for name in self.classes]
        return tuple(self.caption.format(c, a=f"{'an' if c[0] in _VOWELS else 'a'} {c}") for c in said)

    def missing(self, path: str | Path, wanted: str) -> BadData:
        """Return the error for files that are not there: what, where, and how they get there."""
        return BadData(
            f"{self.name}: no {wanted} in '{path}'; download it by hand from {self.home}, unpack it, and write "
            f"{self.name}:FOLDER"
        )

    def folder(self, path: str) -> Path:
        """Return the folder that `--data name:PATH` means.

        Raises:
            BadData: there is none, or an archive in its place.
        """
        found = Path(path).expanduser()
        if path and found.is_file() and "".join(found.suffixes[-2:]) in (".tar.gz", ".tgz"):
            raise BadData(f"{self.name}: '{path}' is an archive; unpack it: tar xzf {path}")
        if not path or not found.is_dir():
            raise BadData(
                f"{self.name}: there is no folder '{path}'; write {self.name}:FOLDER, with the files of {self.home}"
            )
        return found


def check_labels(source: Source, labels: np.ndarray, where: Path) -> np.ndarray:
    """Return labels as int64; raises BadData when one is no class of the source."""
    labels = labels.astype(np.int64)
    if len(labels) and not (labels.min() >= 0 and labels.max() < len(source.classes)):
        bad = int(labels.max() if labels.max() >= len(source.classes) else labels.min())
        raise BadData(f"{where}: label {bad} is none of the {len(source.classes)} classes of {source.name}")
    return labels


def held_out(n: int) -> np.ndarray:
    """Return which of n training rows are validation, bool [n]: a tenth, the same whatever the run."""
    chosen = np.zeros(n, dtype=bool)
    chosen[base.epoch_order(n, _SEED, 0)[: n // HELD]] = True
    return chosen


def cut(found: Pictures, split: str) -> Pictures:
    """Return the rows of the official training file that are `split`; all of the test file for `heldout`."""
    if split == "heldout":
        return found
    rows = held_out(len(found.labels)) == (split == "validation")
    return Pictures(found.pixels[rows], found.labels[rows])


class LabelledData:
    """The dataset; keeps the `Dataset` contract. Captions are the source's, one a class."""

    def __init__(
        self, source: Source, path: str, split: str, size: int, transform: transforms.Transform, found: Pictures
    ) -> None:
        self.uri, self.split, self.size, self.transform = f"{source.name}:{path}", split, size, transform
        self.classes, self.stochastic = source.classes, transform.stochastic
        self._captions, self._found = source.captions(), found
        digest = hashlib.sha256(np.ascontiguousarray(found.pixels).data).hexdigest()
        state = (digest, found.labels.tobytes(), source.classes, source.caption)
        self.fingerprint = base.fingerprint("labelled 1", split, size, transform.name, state)

    def __len__(self) -> int:
        return len(self._found.labels)

    def read(self, rows: Sequence[int], rng: Rng | None = None) -> Batch:
        """Return images [B,3,size,size] in [0, 1], captions and labels [B]."""
        index = [int(row) for row in rows]
        numbers = base.random_numbers(self.transform, index, rng)
        pictures = (Image.fromarray(self._found.pixels[i]).convert("RGB") for i in index)
        pixels = base.transformed(pictures, self.transform, self.size, numbers)
        labels = self._found.labels[index].tolist()
        return base.to_batch(pixels, [self._captions[label] for label in labels], labels)

    def labels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the labels of these rows, int64 [n], without reading pictures."""
        return self._found.labels[np.asarray(rows, dtype=np.int64)]

    def texts(self) -> Iterator[str]:
        """Yield every caption."""
        yield from (self._captions[label] for label in self._found.labels.tolist())

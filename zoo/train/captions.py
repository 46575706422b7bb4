"""Captions by their hashes: which of some data's are different, and where one of them is among many.

A hash has 128 bits, in two numbers: none of any number of captions that there are will share one.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence

import attrs
import numpy as np

HASHED = 1 << 14
"""Captions hashed at a time."""


@attrs.frozen(kw_only=True, eq=False)
class Distinct:
    """The different captions of some data."""

    keys: np.ndarray
    """[2, n] int64, sorted; two rows, so that the first can be searched as it lies on the disk."""
    first: np.ndarray
    """[n] int64: where in the data each comes first."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Distinct:
        """Read all captions once."""
        keys = np.concatenate([np.empty((2, 0), np.int64), *map(keys_of, chunks(texts, HASHED))], axis=1)
        order = np.lexsort((keys[1], keys[0]))  # stable: of equal ones the first in the data comes first
        keys = keys[:, order]
        new = np.ones(len(order), bool)
        new[1:] = (keys[:, 1:] != keys[:, :-1]).any(0)
        return cls(keys=keys[:, new], first=order[new])

    def __len__(self) -> int:
        return len(self.first)

    @property
    def digest(self) -> str:
        """Hash of what captions these are."""
        return hashlib.sha256(self.keys.tobytes()).hexdigest()


def keys_of(texts: Sequence[str]) -> np.ndarray:
    """Return the hash of each caption, [2, B] int64."""
    hashes = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(b"".join(hashes), "<i8").reshape(-1, 2).T.astype(np.int64, order="C")


def find(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where in keys [2, n] each of wanted [2, B] is, [B]; -1 where it is not."""
    rows, last = np.searchsorted(keys[0], wanted[0]), keys.shape[1] - 1
    while True:
        at = keys[:, np.minimum(rows, last)]
        other = (at != wanted).any(0)
        further = other & (at[0] == wanted[0]) & (rows < last)  # captions that share 64 bits lie side by side
        if not further.any():
            return np.where(other, -1, rows)
        rows = rows + further


def chunks(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield lists of at most `size` of them."""
    source = iter(texts)
    while some := list(itertools.islice(source, size)):
        yield some

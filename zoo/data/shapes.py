"""`shapes`: captioned pictures of one or two coloured shapes, drawn when they are read.

A row's number and its split decide picture, caption and label; nothing is stored. Half of the pictures hold one
object ("a small red circle at the top left"), a quarter two above each other, a quarter two side by side. Three
(colour, shape) pairs never occur in training: a model that draws them has understood the caption.

    train       seen pairs only; 65536 rows, or n
    validation  seen pairs only, other random numbers; 4096 rows
    heldout     every caption has at least one unseen pair; 4096 rows

Options after "shapes:": n=ROWS (or a bare number) for the length of train, objects=1 or 2 for pictures of that
many objects only (1: class-conditional training).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

import attrs
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from zoo.data import base, transforms
from zoo.data.drawing import COLOURS, SHAPES, Objects, draw
from zoo.errors import BadData
from zoo.interfaces import Batch
from zoo.rng import Rng

CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
"""Names of the 24 labels: 4 * colour index + shape index."""
UNSEEN = tuple(CLASSES.index(pair) for pair in ("purple triangle", "orange circle", "green cross"))
"""Labels of the pairs that only `heldout` has."""
SIZES, ROWS, COLUMNS = ("small", "large"), ("top", "middle", "bottom"), ("left", "center", "right")
ONE, ABOVE, LEFT = range(3)
"""Kinds of caption: one object, one above another, one left of another."""
PLACES = (9.0, 16.0, 23.0)
"""Coordinate of the named rows and columns."""
RADII = (4.5, 8.5)
"""Radius of a small and of a large object."""
_RADIUS_OF_TWO, _NEAR, _FAR, _MIDDLE, _JITTER = 6.0, 8.5, 23.5, 16.0, 1.5
_LENGTHS = {"train": 65536, "validation": 4096, "heldout": 4096}
_SEED = 210212092  # of the dataset itself: every run sees the same pictures

_PAIR = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})"
_ONE = re.compile(rf"a ({'|'.join(SIZES)}) {_PAIR} at the ({'|'.join(ROWS)}) ({'|'.join(COLUMNS)})")
_TWO = re.compile(rf"a {_PAIR} (above|left of) a {_PAIR}")


@attrs.frozen
class Scene:
    """What a caption says."""

    kind: int
    """ONE, ABOVE or LEFT."""
    pairs: tuple[int, ...]
    """Labels of the objects, in the caption's order."""
    size: int = 0
    """Index into SIZES; means something for one object only, like the next two."""
    row: int = 0
    column: int = 0

    def caption(self) -> str:
        """Return the sentence."""
        first = CLASSES[self.pairs[0]]
        if self.kind == ONE:
            return f"a {SIZES[self.size]} {first} at the {ROWS[self.row]} {COLUMNS[self.column]}"
        return f"a {first} {'above' if self.kind == ABOVE else 'left of'} a {CLASSES[self.pairs[1]]}"


def parse(caption: str) -> Scene:
    """Return what a caption says; case and spacing do not matter.

    Raises:
        BadData: it is not a caption of `shapes`.
    """
    text = " ".join(caption.lower().split())
    if match := _ONE.fullmatch(text):
        size, colour, shape, row, column = match.groups()
        pair = CLASSES.index(f"{colour} {shape}")
        return Scene(ONE, (pair,), SIZES.index(size), ROWS.index(row), COLUMNS.index(column))
    if match := _TWO.fullmatch(text):
        colour, shape, relation, other_colour, other_shape = match.groups()
        pairs = (CLASSES.index(f"{colour} {shape}"), CLASSES.index(f"{other_colour} {other_shape}"))
        return Scene(ABOVE if relation == "above" else LEFT, pairs)
    raise BadData(f"'{caption}' is not a caption of 'shapes' (like 'a red circle above a blue square')")


@lru_cache
def _choices(split: str, objects: int) -> Tensor:
    """Return the pairs a picture may have, uniformly drawn from: [n,2] (of one object, the second is idle)."""
    seen = [pair for pair in range(len(CLASSES)) if pair not in UNSEEN]
    if objects == 1:
        return torch.tensor([(pair, pair) for pair in (UNSEEN if split == "heldout" else seen)])
    everything = range(len(CLASSES)) if split == "heldout" else seen
    return torch.tensor(
        [(a, b) for a in everything for b in everything if split != "heldout" or a in UNSEEN or b in UNSEEN]
    )


@attrs.frozen(eq=False)
class Plan:
    """What is in each of B pictures, before it is drawn."""

    kind: Tensor
    """[B] ONE, ABOVE or LEFT."""
    pair: Tensor
    """[B,2] labels of the first and the second object."""
    size: Tensor
    """[B] index into SIZES; like the next two, idle where there are two objects."""
    row: Tensor
    column: Tensor
    jitter: Tensor
    """[B,2,2] offset (x, y) of each object from its named place, in pixels of a 32 px picture."""

    def captions(self) -> tuple[str, ...]:
        """Return one sentence a picture."""
        fields = (self.kind, self.pair, self.size, self.row, self.column)
        rows = zip(*(field.tolist() for field in fields), strict=True)
        return tuple(Scene(k, tuple(p), s, r, c).caption() for k, p, s, r, c in rows)

    def objects(self) -> Objects:
        """Return where and how large the objects are."""
        places = torch.tensor(PLACES)
        one = torch.stack([places[self.column], places[self.row]], -1)
        near, far = torch.tensor([_MIDDLE, _NEAR]), torch.tensor([_MIDDLE, _FAR])  # (x, y) when above
        two = (self.kind != ONE)[:, None]
        above = (self.kind == ABOVE)[:, None]
        first = torch.where(two, torch.where(above, near, near.flip(0)), one)
        second = torch.where(above, far, far.flip(0))
        radius = torch.where(two, _RADIUS_OF_TWO, torch.tensor(RADII)[self.size][:, None])
        return Objects(
            pair=self.pair,
            centre=torch.stack([first, second], 1) + self.jitter,
            radius=radius.expand(-1, 2),
            count=1 + two[:, 0].long(),
        )


def plan(split: str, rows: Sequence[int] | np.ndarray | Tensor, objects: int = 0) -> Plan:
    """Return what is in these rows of a split; `objects` 1 or 2 asks for that many in each picture."""
    rng = Rng(_SEED, torch.as_tensor(rows, dtype=torch.int64)).fork(split)
    u = rng.uniform(9)
    kind = (4 * u[:, 0]).long().sub_(1).clamp_min_(ONE)  # quarters: one, one, above, left
    if objects == 1:
        kind = torch.full_like(kind, ONE)
    elif objects == 2:
        kind = ABOVE + (2 * u[:, 0]).long()
    singles, doubles = _choices(split, 1), _choices(split, 2)
    pair = torch.where(
        (kind == ONE)[:, None],
        singles[(u[:, 1] * len(singles)).long()],
        doubles[(u[:, 1] * len(doubles)).long()],
    )
    size, row, column = ((u[:, i] * n).long() for i, n in ((2, 2), (3, 3), (4, 3)))
    return Plan(kind, pair, size, row, column, u[:, 5:].view(-1, 2, 2).sub(0.5).mul(2 * _JITTER))


@attrs.frozen(eq=False)
class Shapes:
    """The dataset; keeps the `Dataset` contract."""

    uri: str
    split: str
    size: int
    """Side of the pictures, in pixels."""
    transform: transforms.Transform
    length: int
    objects: int
    """1 or 2: pictures of that many objects only; 0: the usual mixture."""
    classes: tuple[str, ...] = CLASSES

    @property
    def stochastic(self) -> bool:
        """True when the transform draws random numbers."""
        return self.transform.stochastic

    @property
    def fingerprint(self) -> str:
        """Changes whenever a row would read differently."""
        return base.fingerprint("shapes 1", self.split, self.size, self.transform.name, self.length, self.objects)

    def __len__(self) -> int:
        return self.length

    def read(self, rows: Sequence[int], rng: Rng | None = None) -> Batch:
        """Return images [B,3,size,size], captions, and labels [B] (of the first object).

        Raises:
            IndexError: a row is outside the dataset.
        """
        index = torch.as_tensor(rows, dtype=torch.int64)
        if len(index) and not (int(index.min()) >= 0 and int(index.max()) < self.length):
            raise IndexError(f"rows of {self.uri} {self.split} run from 0 to {self.length - 1}")
        scenes = plan(self.split, index, self.objects)
        levels = draw(scenes.objects(), self.size)
        if self.transform.name != "fit":
            pixels = levels.byte().permute(0, 2, 3, 1).contiguous().numpy()
            numbers = base.random_numbers(self.transform, rows, rng)
            pictures = (Image.fromarray(p) for p in pixels)
            changed = base.transformed(pictures, self.transform, self.size, numbers)
            return base.to_batch(changed, scenes.captions(), scenes.pair[:, 0].tolist())
        return Batch(images=levels.div_(255), texts=scenes.captions(), labels=scenes.pair[:, 0])

    def labels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the labels of these rows, int64 [n], without drawing pictures."""
        return plan(self.split, rows, self.objects).pair[:, 0].numpy()

    def texts(self) -> Iterator[str]:
        """Yield every caption."""
        for start in range(0, self.length, 4096):
            rows = range(start, min(start + 4096, self.length))
            yield from plan(self.split, rows, self.objects).captions()


def open_shapes(path: str, *, split: str, size: int, transform: str = "fit") -> Shapes:
    """Open "shapes", "shapes:5000", "shapes:n=5000,objects=1".

    Args:
        path: the options after "shapes:".
        split: "train", "validation" or "heldout".
        size: side of the pictures, 16 to 1024 px.
        transform: a name of `zoo.data.transforms`; "fit" leaves the drawn picture as it is.

    Raises:
        UnknownName: no such option, split or transform.
        BadData: a value is out of range.
    """
    base.check_split(split)
    values = base.options("shapes", path, {"n": _LENGTHS["train"], "objects": 0})
    if not 16 <= size <= 1024:
        raise BadData(f"shapes: pictures are drawn at 16 to 1024 px, not {size}")
    if values["n"] < 1:
        raise BadData("shapes: 'n' must be 1 or more")
    if values["objects"] > 2:
        raise BadData(f"shapes: 'objects' is 1, 2, or 0 for both, not {values['objects']}")
    return Shapes(
        uri=f"shapes:{path}" if path else "shapes",
        split=split,
        size=size,
        transform=transforms.get(transform),
        length=values["n"] if split == "train" else _LENGTHS[split],
        objects=values["objects"],
    )

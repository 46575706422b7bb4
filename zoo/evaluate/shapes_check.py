"""Caption accuracy on `shapes`: does a picture show what its caption says?

The judge looks at one region an object: the whole picture, or the half the caption names. There

- the foreground is every pixel whose summed absolute RGB difference from the background exceeds 0.35; fewer than
  8 pixels (at 32 px, more in proportion) is nothing at all;
- the colour is the palette colour nearest to the foreground's mean;
- the shape is the outline of best intersection over union, over centres up to 1 px from the middle of the
  foreground's bounding box and radii of 0.9 to 1.2 of its half extent;
- a single object is large when that half extent exceeds 6.5 px, and is at the named place when the middle of the
  box is within 3.5 px of it.

All must agree. Lengths are for a 32 px picture and scale with its side. The judge is for pictures of 32 px and
more: at 16 px it fails one true picture in four. No training and no selection may use it.

Shapes: R regions, S side, C candidate columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import numpy as np
import torch
from torch import Tensor

from zoo.data.drawing import BACKGROUND, PALETTE, SHAPES, SIDE, half_width
from zoo.data.shapes import ABOVE, CLASSES, ONE, PLACES, parse
from zoo.errors import BadData

_DIFFERENT = 0.35
_FEWEST = 8
_LARGE = 6.5
_NEAR = 3.5
_SHIFTS = (-1.0, 0.0, 1.0)
_FACTORS = (0.9, 0.95, 1.0, 1.05, 1.1, 1.15, 1.2)
_PIXELS_AT_ONCE = 2**18


@attrs.frozen(eq=False)
class Reading:
    """What the judge sees in R regions."""

    found: Tensor
    """[R] bool: there are enough foreground pixels."""
    pair: Tensor
    """[R] int64: 4 * colour index + shape index."""
    half: Tensor
    """[R] half extent of the foreground's bounding box, in pixels of a 32 px picture."""
    centre: Tensor
    """[R,2] middle (x, y) of that box, likewise."""


def check(images: Tensor, texts: Sequence[str]) -> np.ndarray:
    """Return whether each picture obeys its caption, bool [B].

    Args:
        images: [B,3,S,S] in [0, 1], S of 32 px or more.
        texts: as many captions of `shapes`.

    Raises:
        BadData: the pictures are smaller than 32 px, not square or not as many as the captions, or a caption is
            not one of `shapes`.
    """
    images = _pictures(images, len(texts), "captions")
    scenes = [parse(text) for text in texts]
    verdict = np.ones(len(scenes), dtype=bool)
    rows = torch.tensor([row for row, scene in enumerate(scenes) for _ in scene.pairs], dtype=torch.int64)
    windows = [w for scene in scenes for w in _windows(scene.kind, images.shape[-1])]
    wanted = torch.tensor([pair for scene in scenes for pair in scene.pairs], dtype=torch.int64)
    seen = _read(images, rows, torch.tensor(windows, dtype=torch.int64).view(-1, 4))
    right = seen.found & (seen.pair == wanted)
    single = torch.tensor([scenes[row].kind == ONE for row in rows.tolist()], dtype=torch.bool)
    large = torch.tensor([bool(scenes[row].size) for row in rows.tolist()], dtype=torch.bool)
    place = torch.tensor([(PLACES[scenes[row].column], PLACES[scenes[row].row]) for row in rows.tolist()]).view(-1, 2)
    near = (seen.centre - place).norm(dim=1) <= _NEAR
    right &= ~single | (((seen.half > _LARGE) == large) & near)
    np.logical_and.at(verdict, rows.numpy(), right.numpy())
    return verdict


def check_labels(images: Tensor, labels: Sequence[int] | Tensor) -> np.ndarray:
    """Return whether the one object of each picture has the colour and shape of its label, bool [B].

    Args:
        images: [B,3,S,S] in [0, 1], S of 32 px or more.
        labels: [B], 4 * colour index + shape index.

    Raises:
        BadData: see `check`; or a label is not one of the 24.
    """
    wanted = torch.as_tensor(labels, dtype=torch.int64).cpu()
    images = _pictures(images, len(wanted), "labels")
    if len(wanted) and not (int(wanted.min()) >= 0 and int(wanted.max()) < len(CLASSES)):
        raise BadData(f"labels of 'shapes' run from 0 to {len(CLASSES) - 1}")
    rows = torch.arange(len(wanted))
    seen = _read(images, rows, torch.tensor(_windows(ONE, images.shape[-1])).expand(len(rows), -1))
    return (seen.found & (seen.pair == wanted)).numpy()


def _pictures(images: Tensor, count: int, what: str) -> Tensor:
    if images.ndim != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3]:
        raise BadData(f"the caption check reads square pictures [B,3,S,S], not {list(images.shape)}")
    if images.shape[-1] < SIDE:
        raise BadData(f"the caption check is defined from {SIDE} px up, not for {images.shape[-1]} px pictures")
    if len(images) != count:
        raise BadData(f"the caption check got {len(images)} pictures for {count} {what}")
    return images.detach().float().cpu()


def _windows(kind: int, side: int) -> list[tuple[int, int, int, int]]:
    """Return the region (left, top, right, bottom) of each object a caption names."""
    half = side // 2
    if kind == ONE:
        return [(0, 0, side, side)]
    if kind == ABOVE:
        return [(0, 0, side, half), (0, half, side, side)]
    return [(0, 0, half, side), (half, 0, side, side)]


def _read(images: Tensor, rows: Tensor, windows: Tensor) -> Reading:
    """Read the regions `windows` [R,4] of the pictures `rows` [R]."""
    step = max(1, _PIXELS_AT_ONCE // images.shape[-1] ** 2)
    chunks = zip(rows.split(step), windows.split(step), strict=True)
    readings = [_read_some(images[row], window) for row, window in chunks]
    return Reading(*(torch.cat(values) for values in zip(*map(_fields, readings), strict=True)))


def _fields(reading: Reading) -> tuple[Tensor, ...]:
    return reading.found, reading.pair, reading.half, reading.centre


def _read_some(images: Tensor, windows: Tensor) -> Reading:
    side = images.shape[-1]
    scale = side / SIDE
    at = torch.arange(side)
    left, top, right, bottom = windows.T[:, :, None]
    inside_x, inside_y = (at >= left) & (at < right), (at >= top) & (at < bottom)
    background = torch.tensor(BACKGROUND)[:, None, None] / 255
    mask_RSS = (images - background).abs().sum(1) > _DIFFERENT
    mask_RSS &= inside_y[:, :, None] & inside_x[:, None, :]
    count = mask_RSS.sum((1, 2))
    palette = torch.tensor(list(PALETTE.values())) / 255
    # where, not a product: a NaN outside the foreground must not reach the mean
    mean = torch.where(mask_RSS[:, None], images, 0.0).sum((2, 3)) / count.clamp_min(1)[:, None]
    colour = (mean[:, None] - palette).square().sum(-1).argmin(1)
    x0, x1 = _ends(mask_RSS.any(1))
    y0, y1 = _ends(mask_RSS.any(2))
    half = torch.maximum(x1 - x0, y1 - y0) / 2
    centre = torch.stack([x0 + x1, y0 + y1], 1) / 2
    shape = _best_shape(mask_RSS, centre, half, windows)
    return Reading(count >= _FEWEST * scale**2, 4 * colour + shape, half / scale, centre / scale)


def _ends(line_RS: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the True values of each row begin and end (exclusive)."""
    first = line_RS.int().argmax(1)
    return first, line_RS.shape[1] - line_RS.flip(1).int().argmax(1)


def _best_shape(mask_RSS: Tensor, centre: Tensor, half: Tensor, windows: Tensor) -> Tensor:
    """Return the index of the outline of best intersection over union, [R].

    An outline's section at one height is an interval, so a running sum along x gives its overlap from two look-ups.
    """
    side = mask_RSS.shape[-1]
    scale = side / SIDE
    sums = torch.nn.functional.pad(mask_RSS.int().cumsum(2, dtype=torch.int32), (1, 0))
    count = sums[:, :, -1].sum(1)[:, None]
    left, top, right, bottom = windows.T[:, :, None]
    at = torch.arange(side)
    outside_RS = (at < top) | (at >= bottom)
    x_RC = centre[:, 0:1] + scale * torch.tensor(_SHIFTS)
    scores = []
    for shape in range(len(SHAPES)):
        best = torch.zeros(len(mask_RSS))
        for shift in _SHIFTS:
            dy_RS = at + 0.5 - centre[:, 1:2] - scale * shift
            for factor in _FACTORS:
                width_RS = half_width(shape, dy_RS, factor * half[:, None]).masked_fill(outside_RS, 0)
                # pixel i is covered when its centre i + 0.5 is; both ends are open
                low_RSC = (x_RC[:, None] - width_RS[:, :, None] + 0.5).floor()
                high_RSC = (x_RC[:, None] + width_RS[:, :, None] - 0.5).ceil()
                low_RSC = torch.clamp(low_RSC, left[:, :, None], right[:, :, None])
                high_RSC = torch.maximum(torch.clamp(high_RSC, left[:, :, None], right[:, :, None]), low_RSC)
                low, high = low_RSC.long(), high_RSC.long()
                both = (sums.gather(2, high) - sums.gather(2, low)).sum(1)
                union = count + (high - low).sum(1) - both
                best = torch.maximum(best, (both / union.clamp_min(1)).amax(1))
        scores.append(best)
    return torch.stack(scores, 1).argmax(1)

"""The pictures of `shapes`: palette, four outlines, and an anti-aliased drawing of many pictures at once.

Lengths are in pixels of a 32 px picture and scale with its side; pixel centres lie at i + 0.5; the origin is top
left, x goes right and y down. Every outline is mirror symmetric about its centre column and each of its
horizontal sections is one interval, so an outline is a function: half width by height. Drawing uses that: it is
exact along x and takes `_LINES` lines a pixel along y, where point sampling of equal quality takes 16 points.

Shapes: B pictures, S side, L = S * _LINES lines.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

SIDE = 32
"""Side of the picture that all lengths are stated for."""
BACKGROUND = (240, 240, 240)
PALETTE = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (235, 215, 50),
    "purple": (150, 60, 190),
    "orange": (240, 140, 30),
}
"""Colour name -> 8-bit RGB, in the order of the colour index."""
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "cross")
"""Shape names, in the order of the shape index."""
_LINES = 4
_PIXELS_AT_ONCE = 2**18  # small enough that the canvases stay in the cache


@attrs.frozen(eq=False)
class Objects:
    """At most two objects a picture; lengths in pixels of a 32 px picture."""

    pair: Tensor
    """[B,2] int64: 4 * colour index + shape index."""
    centre: Tensor
    """[B,2,2] float: (x, y)."""
    radius: Tensor
    """[B,2] float."""
    count: Tensor
    """[B] int64: 1 or 2; the second object of a picture of one is not drawn."""

    def __getitem__(self, rows: slice) -> Objects:
        return Objects(self.pair[rows], self.centre[rows], self.radius[rows], self.count[rows])


def half_width(shape: int, dy: Tensor, r: Tensor) -> Tensor:
    """Return half the width of outlines of radius `r` at `dy` below their centre; 0 above and below them.

    `shape` is an index into SHAPES; `dy` and `r` broadcast.
    """
    if shape == 0:  # circle
        return (r * r - dy * dy).clamp_min_(0).sqrt_()
    if shape == 1:  # square
        return torch.where(dy.abs() < 0.88 * r, 0.88 * r, 0.0)
    if shape == 2:  # triangle
        return torch.where(dy < 0.8 * r, (0.58 * (dy + r)).clamp_min_(0), 0.0)
    bar = torch.where(dy.abs() < 0.35 * r, r, 0.35 * r)  # cross
    return torch.where(dy.abs() < r, bar, 0.0)


def draw(objects: Objects, size: int) -> Tensor:
    """Return pictures of `size` px, float32 [B,3,S,S], whole numbers of [0, 255]."""
    out = torch.empty(len(objects.count), 3, size, size)
    step = max(1, _PIXELS_AT_ONCE // size**2)
    for start in range(0, len(out), step):
        rows = slice(start, start + step)
        _draw(objects[rows], out[rows])
    return out


def _draw(objects: Objects, canvas: Tensor) -> None:
    background = torch.tensor(BACKGROUND, dtype=torch.float32)
    change = torch.tensor(list(PALETTE.values()), dtype=torch.float32)[objects.pair // 4] - background  # [B,2,3]
    shape, size = objects.pair % 4, canvas.shape[-1]
    front = (objects.count > 1).nonzero()[:, 0]
    behind_BSS = _cover(shape[:, 0], objects.centre[:, 0], objects.radius[:, 0], size)
    front_FSS = _cover(shape[front, 1], objects.centre[front, 1], objects.radius[front, 1], size)
    behind_BSS[front] *= 1 - front_FSS  # the second object lies over the first
    torch.mul(behind_BSS[:, None], change[:, 0, :, None, None], out=canvas)
    canvas.index_add_(0, front, front_FSS[:, None] * change[front, 1, :, None, None])
    canvas.add_(background[:, None, None]).round_()


def _cover(shape: Tensor, centre: Tensor, radius: Tensor, size: int) -> Tensor:
    """Return the share of each pixel that the outline covers, [B,S,S] in [0, 1]."""
    scale = size / SIDE
    x_BS = torch.arange(size) + 0.5 - scale * centre[:, 0:1]
    y_BL = (torch.arange(size * _LINES) + 0.5) / _LINES - scale * centre[:, 1:2]
    half_BSL = torch.empty(len(shape), size, _LINES)
    for k in range(len(SHAPES)):
        rows = (shape == k).nonzero()[:, 0]
        half_BSL.view_as(y_BL)[rows] = half_width(k, y_BL[rows], scale * radius[rows, None])
    beyond_B1S = x_BS.abs().sub_(0.5)[:, None]  # from the centre to the pixel's near side
    total = torch.zeros(len(shape), size, size)
    line = torch.empty_like(total)
    for k in range(_LINES):
        half_BS1 = half_BSL[:, :, k : k + 1]
        most_BS1 = (2 * half_BS1).clamp_max(1)  # a section narrower than a pixel covers its own width
        torch.sub(half_BS1, beyond_B1S, out=line)
        total += torch.minimum(line.clamp_min_(0), most_BS1, out=line)
    return total.div_(_LINES)

"""Picture grids for people: a PNG with every picture's caption, and the captions again as text inside the file."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence

import attrs
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from zoo.files import atomic_bytes

_LEAST = 96  # px: smaller pictures are enlarged by whole factors, pixels kept square
_GAP = 8
_LINES = 4  # of a caption; the rest is cut
_WIDEST = 8  # columns, unless asked for
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


@attrs.frozen
class _Block:
    """Pictures that share a caption; its lines stand above them."""

    lines: tuple[str, ...]
    pictures: range


def save_grid(
    path: str | os.PathLike[str],
    images: Tensor,
    captions: Sequence[str],
    *,
    columns: int | None = None,
    title: str = "",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a captioned grid; the file appears whole or not at all.

    Args:
        path: where the PNG goes; missing folders are made.
        images: [N,3,H,W] in [0, 1].
        captions: N captions, one above each picture; or fewer that divide N, prompt-major, one above each group.
        columns: pictures side by side; None: about a square, or a group on a line, 8 at most.
        title: a line at the top.
        metadata: further text in the file, by key; an "Attribution" is printed below the grid too.

    Raises:
        ValueError: the captions do not divide the pictures.
    """
    count = len(images)
    if count == 0 or not captions or count % len(captions):
        raise ValueError(f"{len(captions)} captions cannot be shared out over {count} pictures")
    pictures = _enlarged(images)
    each = count // len(captions)
    columns = columns or min(_WIDEST, each if each > 1 else int(np.ceil(np.sqrt(count))))
    notes = dict(metadata or {})
    page = _page(pictures, [_printable(c) for c in captions], columns, _printable(title), notes.get("Attribution", ""))
    info = PngInfo()
    for key, value in (notes | {"Title": title, "captions": json.dumps(list(captions))}).items():
        info.add_itxt(_printable(key)[:79] or "note", value.encode("utf-8", "replace").decode())
    buffer = io.BytesIO()
    page.save(buffer, "PNG", pnginfo=info)
    atomic_bytes(path, buffer.getvalue())


def _enlarged(images: Tensor) -> np.ndarray:
    """Return uint8 [N,h,w,3], small pictures by a whole factor larger; what is not finite is black."""
    pixels = images.detach().float().nan_to_num(0.0, 1.0, 0.0).clamp(0, 1).mul(255).round().byte()
    array = pixels.permute(0, 2, 3, 1).cpu().numpy()
    factor = -(-_LEAST // min(array.shape[1:3]))
    return array.repeat(factor, axis=1).repeat(factor, axis=2)


def _printable(text: str) -> str:
    """Return one line without control characters or lone surrogates, which fonts and files cannot hold."""
    text = text.encode("utf-8", "replace").decode()
    return " ".join("".join(c if c.isprintable() or c.isspace() else " " for c in text).split())


def _font(size: int = 13) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _known(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Return the text as far as the font can take it: a bitmap font knows Latin letters only."""
    if isinstance(font, ImageFont.FreeTypeFont):
        return text
    return text.encode("latin-1", "replace").decode("latin-1")


def _wrap(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> tuple[str, ...]:
    """Break a text into lines of at most `width` px; long words break anywhere, long texts end in dots."""
    lines, line = [], ""
    for word in _known(text, font).split(" "):
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        while font.getlength(word) > width and len(word) > 1:
            fits = next(n for n in range(1, len(word)) if font.getlength(word[: n + 1]) > width)
            lines.append(word[:fits])
            word = word[fits:]
            if len(lines) > _LINES:
                break
        line = word
        if len(lines) > _LINES:
            break
    lines.append(line)
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], lines[_LINES - 1][:-2] + "..."]
    return tuple(lines)


def _page(pictures: np.ndarray, captions: Sequence[str], columns: int, title: str, foot: str) -> Image.Image:
    """Draw the grid: rows of blocks, each its lines of caption and its pictures below."""
    font = _font()
    line_height = round(font.getbbox("Ag")[3]) + 2
    count, height, width, _ = pictures.shape
    each = count // len(captions)
    columns = min(columns, count if each == 1 else each)
    page_width = _GAP + columns * (width + _GAP)
    limit = width if each == 1 else page_width - 2 * _GAP
    blocks = [_Block(_wrap(c, limit, font), range(i * each, (i + 1) * each)) for i, c in enumerate(captions)]
    heads = _wrap(title, page_width - 2 * _GAP, font) if title else ()
    feet = _wrap(_printable(foot), page_width - 2 * _GAP, font) if foot else ()

    placed: list[tuple[int, int, str | int]] = []  # (x, y, a line of text or a picture's number)
    y = _GAP

    def write(lines: Sequence[str], x: int) -> None:
        placed.extend((x, y + k * line_height, line) for k, line in enumerate(lines))

    write(heads, _GAP)
    y += len(heads) * line_height
    side_by_side = columns if each == 1 else 1
    for start in range(0, len(blocks), side_by_side):
        row = blocks[start : start + side_by_side]
        tallest = max(len(block.lines) for block in row)
        for k, block in enumerate(row):  # the last line rests on the picture
            write(("",) * (tallest - len(block.lines)) + block.lines, _GAP + k * (width + _GAP))
        y += tallest * line_height + 2
        shown = [i for block in row for i in block.pictures]
        for first in range(0, len(shown), columns):
            placed += [(_GAP + k * (width + _GAP), y, i) for k, i in enumerate(shown[first : first + columns])]
            y += height + _GAP
    write(feet, _GAP)
    y += len(feet) * line_height + _GAP

    page = Image.new("RGB", (page_width, y), _PAPER)
    draw = ImageDraw.Draw(page)
    for x, top, what in placed:
        if isinstance(what, str):
            draw.text((x, top), what, fill=_INK, font=font)
        else:
            page.paste(Image.fromarray(pictures[what]), (x, top))
    return page

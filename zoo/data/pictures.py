"""Any picture file to an 8-bit RGB picture, upright, on white.

Handled: EXIF orientation, transparency in all its forms, grey, palette, 1-bit, 16-bit grey, CMYK; of an animation
the first frame counts. Colour profiles are ignored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from zoo.errors import BadData

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""File name endings that are pictures, in lower case."""
MOST_PIXELS = 89_478_485
"""Largest picture that is decoded, in pixels: Pillow's own limit against pictures that fill the memory."""
_FORMATS = ("PNG", "JPEG", "WEBP")  # whatever the ending says, nothing else is parsed


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into BadData that names the reason."""
    try:
        yield
    except BadData:
        raise
    except Image.DecompressionBombError:
        raise BadData(f"{file}: more than {MOST_PIXELS} pixels, the most that is decoded") from None
    except Exception as error:  # decoders of damaged files raise nearly anything: OSError, SyntaxError, struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadData(f"{file}: {reason.replace(f' {str(file)!r}', '')}") from error


def _open(file: Path) -> Image.Image:
    picture = Image.open(file, formats=_FORMATS)
    width, height = picture.size
    if width * height > MOST_PIXELS:
        picture.close()
        raise BadData(f"{file}: {width} x {height} is more than {MOST_PIXELS} pixels, the most that is decoded")
    return picture


def check_header(file: Path) -> None:
    """Read the header only, which is cheap.

    Raises:
        BadData: this is no png, jpeg or webp, or it has too many pixels.
    """
    with _reading(file), _open(file):
        pass


def open_picture(file: Path) -> Image.Image:
    """Return the picture as 8-bit RGB, decoded in full.

    Raises:
        BadData: it is damaged, truncated, or has too many pixels.
    """
    with _reading(file), _open(file) as picture:
        picture.load()
        return _flatten(ImageOps.exif_transpose(picture))


def _flatten(picture: Image.Image) -> Image.Image:
    """Return an upright picture as RGB on white."""
    if picture.mode.startswith("I") or picture.mode == "F":  # 16-bit grey, whatever Pillow calls it
        levels = np.asarray(picture, dtype=np.float64) / 257
        picture = Image.fromarray(levels.round().clip(0, 255).astype(np.uint8))
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert("RGB")

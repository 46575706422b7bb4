"""Which data can be judged by caption, and by what."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

Judge = Callable[[Tensor, Sequence[str]], np.ndarray]
"""`(images [B,3,H,W], captions) -> bool [B]`, True where the picture obeys its caption."""


def judge_of(data: str, asks: str = "caption") -> Judge | None:
    """Return the check of a dataset uri's pictures, or None where they cannot be judged by rule.

    Args:
        data: dataset uri.
        asks: what the pictures were asked for by. "caption": all that a caption says must be right; "label": colour and
            shape of a picture's one object, of data that have one each; anything else: nothing can be.
    """
    name, _, options = data.partition(":")
    if name != "shapes" or asks not in ("caption", "label"):
        return None
    from zoo.data.shapes import parse
    from zoo.evaluate.shapes_check import check, check_labels

    if asks == "caption":
        return check
    if "objects=1" not in options.split(","):
        return None
    return lambda images, texts: check_labels(images, [parse(text).pairs[0] for text in texts])

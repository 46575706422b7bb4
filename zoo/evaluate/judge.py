"""Which data can be judged by caption, and by what."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

Judge = Callable[[Tensor, Sequence[str]], np.ndarray]
"""`(images [B,3,H,W], captions) -> bool [B]`, True where the picture obeys its caption."""


def judge_of(data: str) -> Judge | None:
    """Return the caption check of a dataset uri, or None when pictures of it cannot be judged by rule."""
    if data.partition(":")[0] != "shapes":
        return None
    from zoo.evaluate.shapes_check import check

    return check

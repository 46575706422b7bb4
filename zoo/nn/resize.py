"""Pictures of another size, without aliasing."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def smaller(images: Tensor, side: int) -> Tensor:
    """Return images [B,C,side,side], each pixel the mean of those it covers: nothing leaves the range of the input."""
    return images if images.shape[-1] == side else F.interpolate(images, (side, side), mode="area")


def larger(images: Tensor, side: int) -> Tensor:
    """Return images [B,C,side,side], bilinear between pixel centres."""
    return F.interpolate(images, (side, side), mode="bilinear", align_corners=False)


def nearest(images: Tensor, side: int) -> Tensor:
    """Return images [B,C,side,side], each pixel a copy of the nearest: to look at, not to compute with."""
    return F.interpolate(images, (side, side), mode="nearest")

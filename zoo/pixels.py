"""Pixels as a latent: what a denoiser works on where nothing compresses. Imports no torch until it is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from zoo.cost import Cost
from zoo.parts import Facts, Grid

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.rng import Rng


@attrs.frozen(kw_only=True)
class Pixels:
    """2x - 1 of a picture's pixels."""

    def facts(self, image_size: int) -> Facts:
        """Return three channels, a cell a pixel, within [-1, 1]."""
        return Facts(channels=3, size=(image_size, image_size), bounded=True)

    def cost(self, batch: int = 1) -> Cost:
        """Return nothing: it has no parameters."""
        return Cost()


def pixels() -> Pixels:
    """Return the one variant."""
    return Pixels()


class PixelLatent:
    """A Latent without parameters."""

    channels = 3
    bounded = True

    def __init__(self, config: Pixels) -> None:
        self.config = config

    def size(self, height: int, width: int) -> Grid:
        """Return the picture's own height and width."""
        return height, width

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Return 2x - 1 of images [B,3,H,W] in [0, 1]."""
        return 2 * images - 1

    def decode(self, z: Tensor) -> Tensor:
        """Return images [B,3,H,W] in [0, 1]; what left [-1, 1] is clipped."""
        return ((z + 1) / 2).clamp(0, 1)

"""Pictures that a cascade begins from: to be enlarged, to be varied, or to be completed where a mask says so."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.data import transforms
from zoo.data.base import to_batch
from zoo.data.pictures import open_picture
from zoo.errors import BadData, ConfigError
from zoo.nn.resize import larger, smaller
from zoo.parts import Place


@attrs.frozen(kw_only=True, eq=False)
class Given:
    """What is given of the pictures to draw, one row a prompt or one for all. P prompts."""

    images: Tensor | None = None
    """[P,3,S,S] in [0, 1], of any size: brought to that of each stage."""
    strength: float | None = None
    """Image to image: where in the process drawing begins, in (0, 1]; 1 keeps nothing of `images`."""
    mask: Tensor | None = None
    """Inpainting: [P,1,S,S], 1 where `images` is kept and 0 where it is drawn."""
    low: Tensor | None = None
    """[P,3,s,s] in [0, 1]: the picture of a stage, which those after it enlarge; its side says which."""

    def __attrs_post_init__(self) -> None:
        if self.images is None and (self.strength is not None or self.mask is not None):
            raise ConfigError("given: strength and mask are of images, and there are none")
        if self.images is not None and self.strength is None and self.mask is None:
            raise ConfigError("given: images need a strength to be varied, or a mask to be completed; give one")
        if (self.images is None) == (self.low is None):
            raise ConfigError("given: images, or the low picture of a stage; one of them")

    def check(self, prompts: int) -> None:
        """Refuse pictures that are neither one for all prompts nor one for each.

        Raises:
            ConfigError: says which.
        """
        for name, x in self._tensors().items():
            if len(x) not in (1, prompts):
                raise ConfigError(f"given: {name} has {len(x)} rows for {prompts} prompts; give one, or one each")

    def to(self, device: torch.device) -> Given:
        """Return the same with every picture on `device`."""
        moved: dict[str, Any] = {name: x.to(device) for name, x in self._tensors().items()}
        return attrs.evolve(self, **moved)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {name: getattr(self, name) for name in ("images", "mask", "low")}
        return {name: x for name, x in tensors.items() if x is not None}

    def __getitem__(self, rows: Tensor) -> Given:
        """Return these rows."""
        taken: dict[str, Any] = {
            # One picture serves every prompt.
            name: x.expand(len(rows), *x.shape[1:]) if len(x) == 1 else x[rows.to(x.device)]
            for name, x in self._tensors().items()
        }
        return attrs.evolve(self, **taken)

    def stages(self, places: Mapping[str, Place]) -> list[str]:
        """Return the roles that draw, in order.

        Raises:
            ConfigError: no stage enlarges a picture of the size of `low`.
        """
        if self.low is None:
            return list(places)
        side = self.low.shape[-1]
        if self.low.shape[-2] != side:
            raise ConfigError(f"low: the picture must be square, not {self.low.shape[-2]} x {side} px")
        sides = {place.low: role for role, place in places.items() if place.low is not None}
        if side not in sides:
            known = " or ".join(f"{low} px ({role})" for low, role in sides.items()) or "no size: there is one stage"
            raise ConfigError(f"low: no stage enlarges a picture of {side} px; give one of {known}")
        roles = list(places)
        return roles[roles.index(sides[side]) :]

    def at(self, side: int, latent: Any) -> tuple[tuple[Tensor, float] | None, tuple[Tensor, Tensor] | None]:
        """Return what `zoo.diffusion.sampling.draw` takes as `start` and `known`, for pictures of this side."""
        if self.images is None:
            return None, None
        z = latent.encode(_to(self.images, side))
        start = None if self.strength is None else (z, self.strength)
        if self.mask is None:
            return start, None
        grid = latent.size(side, side)
        # A cell is kept where all of it is.
        kept = F.interpolate(self.mask.to(z), grid, mode="area") > 1 - 1e-4
        return start, (z, kept)


def from_files(
    system: Any, *, begin: str | None, strength: float | None, mask: str | None, enlarge: str | None
) -> Given:  # fmt: skip
    """Return what a user's picture files give, one row for every prompt.

    Args:
        system: a `CascadeGenerator`.
        begin: picture of any size, brought to the system's by its short side and middle square.
        strength: None: 0.6, and 1 with a mask.
        mask: picture, likewise; kept where it is lighter than mid-grey.
        enlarge: picture of exactly the size that a stage enlarges.

    Raises:
        BadData: a file is not there or no picture.
        ConfigError: see `Given.stages`.
    """
    if enlarge is not None:
        given = Given(low=_read(enlarge, None))
        given.stages(system.places)
        return given
    assert begin is not None
    size = system.config.image_size
    if mask is None:
        return Given(images=_read(begin, size), strength=0.6 if strength is None else strength)
    kept = (_read(mask, size).mean(1, keepdim=True) > 0.5).float()
    return Given(images=_read(begin, size), strength=strength, mask=kept)


def _read(path: str, size: int | None) -> Tensor:
    """Return a picture file as [1,3,S,S] in [0, 1]; None: as it is."""
    if not Path(path).is_file():
        raise BadData(f"there is no picture '{path}'")
    picture = open_picture(Path(path))
    pixels = np.asarray(picture) if size is None else transforms.get("fit")(picture, size, np.empty(0))
    images = to_batch(np.asarray(pixels)[None], None, None).images
    assert images is not None
    return images


def _to(images: Tensor, side: int) -> Tensor:
    return smaller(images, side) if images.shape[-1] >= side else larger(images, side)

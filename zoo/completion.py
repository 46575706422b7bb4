"""Continuing pictures: the upper part of each is given, a causal prior draws the rest.

As in the first figure of [1]: a row has what is given, several continuations, and the original.

Letters: P pictures, n continuations of each, S side of the system's pictures, h w code grid, N = h*w.

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from zoo.data import transforms
from zoo.data.base import to_batch
from zoo.data.pictures import open_picture
from zoo.errors import BadData, CannotSample, ConfigError, PartMismatch

LAW = "imagegpt-eval"
"""What brings a picture of another size to the model's: short side to 224, centre crop, averaged. [1] section 3.1"""
BLANK = 0.5
"""Grey of what is not given."""


@attrs.frozen(eq=False)
class Given:
    """Pictures to continue."""

    images: Tensor
    """[P,3,S,S] in [0, 1]."""
    notes: tuple[str, ...]
    """What was done to each that had another size; "" to the others."""


@attrs.frozen(eq=False)
class Completed:
    """Continuations."""

    images: Tensor
    """[P*n,3,S,S], those of a picture after each other."""
    shown: Tensor
    """[P,3,S,S], what was given; the rest is grey."""
    rows: int
    """Rows of pixels that were given."""


def read(paths: Sequence[str], size: int) -> Given:
    """Read pictures of any size.

    Raises:
        BadData: a file is not there or no picture.
    """
    pixels, notes = [], []
    for path in paths:
        if not Path(path).is_file():
            raise BadData(f"--complete: there is no picture '{path}'")
        picture = open_picture(Path(path))
        width, height = picture.size
        other = picture.size != (size, size)
        pixels.append(transforms.get(LAW if other else "fit")(picture, size, np.empty(0)))
        said = f"{path}: {width} x {height} px, resized by its short side and cropped to the middle {size} x {size}"
        notes.append(said if other else "")
    images = to_batch(np.stack(pixels), None, None).images
    assert images is not None
    return Given(images, tuple(notes))


def check(generator: Any) -> None:
    """Refuse a system that cannot continue pictures.

    Raises:
        CannotSample: its prior has learnt from masked codes and has no order.
        PartMismatch: it has no codes in reading order.
    """
    prior = generator.parts.get("prior")
    if prior is None or not hasattr(generator, "codebook"):
        raise PartMismatch(f"'{generator.card}' draws no codes one after the other: it cannot continue a picture")
    if not prior.causal:
        raise CannotSample(
            f"'{generator.card}' has learnt to fill in masked codes (BERT), all at once and in no order: it cannot "
            "continue a picture; take a run with an autoregressive prior"
        )
    if len(generator.grids) != 1:
        raise PartMismatch(
            f"'{generator.card}' has {len(generator.grids)} code grids, coarse to fine: the upper half of a picture is "
            "not the beginning of its codes"
        )


@torch.no_grad()
def complete(
    generator: Any,
    images: Tensor,
    count: int,
    *,
    keep: float = 0.5,
    prompts: Sequence[Any] = (),
    seed: int = 0,
    **how: Any,
) -> Completed:
    """Continue pictures.

    Args:
        generator: an autoregressive system with one code grid; see `check`.
        images: [P,3,S,S] in [0, 1].
        count: continuations of each, n.
        keep: share of the rows of codes that are given, from the top; a whole row at least, and not all.
        prompts: one for all, one a picture, or none; as `generate` takes them.
        seed: decides every continuation.
        how: what else `generate` takes (temperature, chunk, progress ...).

    Raises:
        CannotSample, PartMismatch: see `check`.
        ConfigError: prompts that are neither one nor one a picture.
    """
    check(generator)
    if len(prompts) not in (0, 1, len(images)):
        raise ConfigError(f"{len(prompts)} prompts for {len(images)} pictures: give none, one, or one a picture")
    asked = list(prompts) * (len(images) if len(prompts) == 1 else 1) or [None] * len(images)
    (height, width), size = generator.grids[0], images.shape[-1]
    kept = min(max(1, round(keep * height)), height - 1)
    codes = generator.codebook.encode(images.to(generator.device))
    prefix = codes.clone()
    prefix[:, kept * width :] = -1
    drawn = generator.generate(asked, images_per_prompt=count, seed=seed, prefix=prefix, **how)
    rows = kept * size // height
    shown = images.clone()
    shown[:, :, rows:] = BLANK
    return Completed(drawn, shown, rows)


def in_rows(done: Completed, images: Tensor) -> tuple[Tensor, list[str]]:
    """Return pictures and captions for a grid: a row is what was given, the continuations, and the original."""
    count = len(done.images) // len(images)
    each = done.images.cpu().unflatten(0, (len(images), count))
    rows = torch.cat([done.shown.cpu()[:, None], each, images.cpu()[:, None]], 1)
    captions = ["given", *(str(i + 1) for i in range(count)), "original"]
    return rows.flatten(0, 1), captions * len(images)

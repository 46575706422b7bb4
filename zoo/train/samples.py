"""Pictures of how training goes, through interface names only: no family is known here."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.data.images import save_grid
from zoo.errors import ZooError
from zoo.interfaces import Codebook, Dataset, Denoiser, Latent, Prior

log = logging.getLogger("zoo.train")

_PICTURES = 8


def draw(generator: Any, role: str, dataset: Dataset, path: Path, *, seed: int, device: Any) -> Path | None:
    """Draw what a part can show now, or return None: a reranker or a prior that cannot sample shows nothing.

    Args:
        generator: the system, in evaluation, holding the weights to show.
        role: the trained part.
        dataset: pictures and captions that are not trained on.
        path: the PNG to write.
        seed: decides the samples.
        device: where the parts are.
    """
    part = generator.parts[role]
    count = min(_PICTURES, len(dataset))
    try:
        with torch.no_grad():
            if isinstance(part, Codebook | Latent):
                images = dataset.read(range(count)).to(device).images
                assert images is not None
                pictures, captions = torch.cat([images, _rebuilt(part, images)]), [""] * (2 * count)
            elif isinstance(part, Denoiser) and hasattr(generator, "draw_stage"):
                batch = dataset.read(range(count)).to(device)
                pictures, captions = generator.draw_stage(role, batch, seed), list(batch.texts or [""] * count)
            elif isinstance(part, Prior | Denoiser):
                prompts = _prompts(part, dataset, count)
                pictures = generator.generate(prompts, seed=seed, allow_untrained=True)
                captions = ["" if p is None else str(p) for p in prompts]
            else:
                return None
    except ZooError as reason:
        log.info("%s: no sample pictures (%s)", role, reason)
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid(path, pictures.float().cpu().clamp(0, 1), captions, columns=count)
    return path


def _rebuilt(part: Any, images: Tensor) -> Tensor:
    """Return what comes back when pictures go through a codebook or a latent."""
    if isinstance(part, Codebook):
        return part.decode(part.encode(images), part.grids(*images.shape[-2:]))
    return part.decode(part.encode(images))


def _prompts(part: Any, dataset: Dataset, count: int) -> Sequence[Any]:
    """Return prompts of the kind that the part reads."""
    reads = getattr(part.config, "reads", "nothing")
    reads = (reads,) if isinstance(reads, str) else tuple(reads)
    if "ids" in reads or "text" in reads:
        texts = dataset.read(range(count)).texts
        return texts or [None] * count
    if "label" in reads:
        return [i % part.config.classes for i in range(count)]
    return [None] * count

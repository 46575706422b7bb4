"""The figures of a trained run, each by interface and none by family.

Captions and seeds are fixed before training: the first rows of a split, and seed 0 unless the caller says otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch

from zoo.evaluate.judge import Judge
from zoo.interfaces import Batch, Dataset
from zoo.rng import Rng

CHUNK = 128
"""Pictures read at a time."""


def batches(dataset: Dataset, count: int, chunk: int = CHUNK, start: int = 0) -> Iterator[tuple[range, Batch]]:
    """Yield (rows, batch) of `count` rows of a dataset from `start`, `chunk` at a time, or of those that it has."""
    stop = min(start + count, len(dataset))
    for at in range(start, stop, chunk):
        rows = range(at, min(at + chunk, stop))
        yield rows, dataset.read(rows)


@torch.no_grad()
def codebook_figures(codebook: Any, dataset: Dataset, count: int, judge: Judge | None = None) -> dict[str, float]:
    """Return how well a codebook reconstructs the first `count` pictures, and how much of it is used.

    Returns:
        `psnr` in dB; `used` codes (distinct) and `vocab_size`; `perplexity` in [1, K]; with a judge, `obeyed`: the
        share of reconstructions that still obey their caption.
    """
    squared = elements = obeyed = 0.0
    seen = torch.zeros(codebook.vocab_size, dtype=torch.long)
    for _, batch in batches(dataset, count):
        images = batch.images
        assert images is not None
        codes = codebook.encode(images)
        again = codebook.decode(codes, codebook.grids(*images.shape[-2:]))
        squared += float((again - images).square().sum())
        elements += images.numel()
        seen += torch.bincount(codes.flatten(), minlength=codebook.vocab_size)
        if judge is not None and batch.texts is not None:
            obeyed += float(judge(again, batch.texts).sum())
    share = seen[seen > 0].double() / seen.sum()
    figures = {
        "psnr": 10 * math.log10(elements / max(squared, 1e-12)),
        "used": int((seen > 0).sum()),
        "vocab_size": codebook.vocab_size,
        "perplexity": float(torch.exp(-(share * share.log()).sum())),
    }
    return {**figures, "obeyed": obeyed / min(count, len(dataset))} if judge is not None else figures


@torch.no_grad()
def loss_figures(
    generator: Any, part: str, dataset: Dataset, count: int, seed: int = 0, chunk: int = CHUNK
) -> dict[str, float]:  # fmt: skip
    """Return the stage's losses on the first `count` rows, means over samples, without training noise."""
    totals: dict[str, float] = {}
    seen = 0
    generator.eval()
    for rows, batch in batches(dataset, count, chunk):
        filled = generator.encode(part, batch)
        losses = generator.loss(part, filled, step=0, rng=Rng(seed, rows))
        for name, value in losses.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(rows)
        seen += len(rows)
    return {name: value / seen for name, value in totals.items()}

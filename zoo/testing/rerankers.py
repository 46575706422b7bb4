"""Checks of rerankers: one score a row, for pictures of any size."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.testing.kit import ROWS, Case, Pictures, close, global_random_state_kept, need


def _texts(case: Case) -> list[str]:
    return list(Pictures(case.image_size).texts())[:ROWS]


def scores_are_one_a_row(case: Case) -> None:
    """score returns finite [B], deterministic, that depends on picture and caption of its own row alone."""
    part, images, texts = case.part, case.images(), _texts(case)
    with torch.inference_mode(), global_random_state_kept("score"):
        scores = part.score(images, texts)
        need(scores.shape == (ROWS,), f"scores have shape {list(scores.shape)}, not {[ROWS]}")
        need(scores.is_floating_point() and scores.isfinite().all(), "scores are not finite")
        need(torch.equal(scores, part.score(images, texts)), "one pair has two scores")
        alone = torch.cat([part.score(images[i : i + 1], texts[i : i + 1]) for i in range(ROWS)])
        close(scores, alone, "a score depends on the pairs beside it")
        flipped = part.score(images.flip(0), texts)
        need(not torch.allclose(scores, flipped), "the score does not depend on the picture")
        need(not torch.allclose(scores, part.score(images, texts[::-1])), "the score does not depend on the caption")


def any_picture_size_is_scored(case: Case) -> None:
    """Pictures of other sizes and shapes are taken: the reranker resizes them itself."""
    texts, size = _texts(case), case.image_size
    for shape in ((size // 2, size // 2), (size * 2 + 1, size * 2 + 1), (size, size * 2), (size + 3, size - 3)):
        images = F.interpolate(case.images(), shape, mode="bilinear").clamp(0, 1)
        with torch.inference_mode():
            scores = case.part.score(images, texts)
        need(scores.shape == (ROWS,) and scores.isfinite().all(), f"pictures of {shape} px are not scored")


CHECKS = [scores_are_one_a_row, any_picture_size_is_scored]

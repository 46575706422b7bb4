"""Checks of text encoders: one embedding a token, nothing of the padding."""

from __future__ import annotations

import torch

from zoo.rng import Rng
from zoo.testing.kit import ROWS, Case, close, global_random_state_kept, need


def embeddings_ignore_padding(case: Case) -> None:
    """encode returns [B,T,D], zero where the mask is False, and no row sees padding or its neighbours."""
    part = case.part
    length = getattr(case.config, "text_length", None) or 6
    vocab = getattr(case.config, "text_vocab", None) or 16
    ids = Rng(0, range(ROWS)).integers(vocab, length)
    mask = torch.arange(length) < torch.arange(1, ROWS + 1)[:, None].clamp(max=length)
    with torch.inference_mode(), global_random_state_kept("encode"):
        x = part.encode(ids, mask)
        need(x.shape == (ROWS, length, part.width), f"embeddings have shape {list(x.shape)}")
        need(x.isfinite().all(), "embeddings are not finite")
        need((x[~mask] == 0).all(), "embeddings of padding are not zero")
        close(x, part.encode(torch.where(mask, ids, (ids + 1) % vocab), mask), "ids under the padding are seen", 1e-6)
        close(x[1:2], part.encode(ids[1:2], mask[1:2]), "an embedding depends on the captions beside it")
    need(case.config.facts(case.image_size).width == part.width, "facts say another width")


CHECKS = [embeddings_ignore_padding]

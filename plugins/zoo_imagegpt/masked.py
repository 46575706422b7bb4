"""What the masked objective needs: which codes are kept, and the loss of the others.

Letters: B pictures, N codes.

[1] M. Chen et al.: Generative Pretraining from Pixels. ICML 2020; section 2.1
[2] github.com/openai/image-gpt, src/model.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.rng import Rng


def keep_mask(rng: Rng, length: int, masked: float, device: torch.device | str | None = None) -> Tensor:
    """Return [B,N] bool, True where a code is seen: where a uniform number is above `masked` [2]."""
    return rng.fork("mask").uniform(length, device=device) > masked


def masked_mean(nats: Tensor, keep: Tensor) -> Tensor:
    """Return the mean over pictures of each one's mean nats [B,N] over its masked codes; 0 for one without any."""
    masked = (~keep).to(nats.dtype)
    return ((nats * masked).sum(1) / masked.sum(1).clamp_min(1)).mean()

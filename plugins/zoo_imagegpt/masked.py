"""What the masked objective needs: which codes are kept, and one answer of several masks.

Letters: B pictures, N codes, M masks.

[1] M. Chen et al.: Generative Pretraining from Pixels. ICML 2020; sections 2.1 and 4.5
[2] github.com/openai/image-gpt, src/model.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.rng import Rng

MASKS = 5
"""Masks of which an evaluation takes the answer together [1] section 4.5."""


def keep_mask(rng: Rng, length: int, masked: float, device: torch.device | str | None = None) -> Tensor:
    """Return [B,N] bool, True where a code is seen: where a uniform number is above `masked` [2]."""
    return rng.fork("mask").uniform(length, device=device) > masked


def keep_masks(
    rng: Rng, length: int, masked: float, masks: int = MASKS, device: torch.device | str | None = None
) -> Tensor:
    """Return [M,B,N] bool, independent masks; those of a picture depend on its own row of `rng`."""
    return torch.stack([keep_mask(rng.fork(f"mask {m}"), length, masked, device) for m in range(masks)])


def vote(labels: Tensor, rng: Rng) -> Tensor:
    """Return the label [B] that most of M answers [M,B] give; chance decides between those given equally often [1]."""
    votes = torch.stack([(labels == one).sum(0) for one in labels], -1)  # [B,M]: how many agree with answer m
    # Of answers with equally many votes, a number below 1 for each label, the same in all its answers, chooses.
    chance = rng.fork("vote").uniform(len(labels), device=labels.device)
    first = torch.stack([(labels == one).int().argmax(0) for one in labels], -1)  # [B,M]: which answer gave it first
    best = (votes + chance.gather(1, first)).argmax(1)
    return labels.T.gather(1, best[:, None])[:, 0]


def masked_mean(nats: Tensor, keep: Tensor) -> Tensor:
    """Return the mean over pictures of each one's mean nats [B,N] over its masked codes; 0 for one without any."""
    masked = (~keep).to(nats.dtype)
    return ((nats * masked).sum(1) / masked.sum(1).clamp_min(1)).mean()

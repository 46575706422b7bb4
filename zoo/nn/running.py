"""A running mean of squares: the measured size of a latent, kept in two buffers of the part that has it."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.nn import across

DECAY = 0.99
"""Of the running mean."""


@torch.no_grad()
def track_mean_square(mean_square: Tensor, updates: Tensor, z: Tensor) -> None:
    """Move a running mean of z², over all ranks, by one update, in place.

    The first updates weigh alike (as Adam corrects its moments), so that what the buffer was born with is forgotten at
    once. An update with values that are not finite is left out.

    Args:
        mean_square: scalar buffer, the mean.
        updates: scalar int64 buffer, the number of updates it is of.
        z: samples of any shape, as many on every rank.
    """
    both = across.sum(torch.stack([z.square().mean(), z.new_ones(())]))
    value = (both[0] / both[1]).to(mean_square)
    fine = value.isfinite()  # a step that will be skipped must not poison the scale
    updates += fine
    weight = (1 - DECAY) / (1 - DECAY ** updates.clamp_min(1).double())
    mean_square.lerp_(torch.where(fine, value, mean_square), weight.to(mean_square))

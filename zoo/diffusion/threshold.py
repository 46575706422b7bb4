"""Keeping estimates of a bounded picture in [-1, 1] while it is sampled.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
[2] github.com/deep-floyd/IF, deepfloyd_if/model/gaussian_diffusion.py
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def static(x: Tensor) -> Tensor:
    """Return x clipped to [-1, 1]. [1] section 2.3"""
    return x.clamp(-1, 1)


def dynamic(x: Tensor, percentile: float = 0.995, cap: float | None = None) -> Tensor:
    """Return x [B,...] clipped to [-s, s] and divided by s, of the same type. [1] section 2.3

    s is, of each picture, this percentile (in (0, 1]) of its absolute values, at least 1 and at most `cap` [2]. Where
    it is 1 this is `static`; with a cap of 1, always.
    """
    if cap == 1:
        return static(x)
    rows = x.flatten(1).abs()
    s = quantile(rows, percentile).clamp(min=1, max=cap).view(-1, *[1] * (x.ndim - 1))
    # The quotient of a number by itself is 1, so the result lies in [-1, 1] to the bit.
    return torch.minimum(torch.maximum(x, -s), s) / s


def quantile(rows: Tensor, q: float) -> Tensor:
    """Return the quantile [B] of each row of [B,n], interpolated as by `torch.quantile`, which takes few numbers only.

    By selection instead of sorting: where q is near 1, among the few largest.
    """
    n = rows.shape[1]
    at = q * (n - 1)
    low = math.floor(at)
    largest = rows.topk(n - low, dim=1, sorted=False).values
    if low == n - 1:
        return largest.amin(1)
    two = largest.topk(2, dim=1, largest=False).values
    return torch.lerp(two[:, 0], two[:, 1], at - low)

"""The variational term of one step, which teaches a denoiser its variance.

Letters: B batch; t the level of z, s the one below it.

[1] J. Ho, A. Jain, P. Abbeel: Denoising diffusion probabilistic models. arXiv:2006.11239
[2] A. Nichol, P. Dhariwal: Improved denoising diffusion probabilistic models. arXiv:2102.09672
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.special import ndtr

if TYPE_CHECKING:
    from zoo.diffusion.losses import Levels

_HALF_BIN = 1 / 255
"""Half the distance of two of the 256 values of a pixel in [-1, 1]."""
_TINY = 1e-12


def bits(x: Tensor, estimate: Tensor, variance: Tensor, at: Levels) -> Tensor:
    """Return the term of each row [B] in bits per dimension. [1] eq. (5), [2] section 3.1

    The divergence of the denoiser's step from the one that knows x; of the step to the clean picture, the likelihood of
    x. For that, values are taken to be the 256 of a pixel, which public code does of latents too.

    Args:
        x: [B,C,h,w] the clean picture.
        estimate: [B,C,h,w] the denoiser's estimate of it.
        variance: [B,C,h,w] in [-1, 1], between the logarithms of the posterior's and the forward step's variance.
        at: the levels of z.
    """
    column = (-1, *[1] * (x.ndim - 1))
    # The share of t's noise that came after s; none where a schedule's clamp makes both levels one.
    fresh = (-(at.upper - at.lower).expm1()).clamp(min=_TINY)
    low = (fresh.log() + logsigmoid(-at.lower)).view(column).to(x)
    # The forward step to the clean picture is all of t's noise.
    high = (fresh.log().masked_fill(at.lowest, 0) + logsigmoid(-at.logsnr)).view(column).to(x)
    log_variance = torch.lerp(low, high, (variance + 1) / 2)
    moved = (fresh * at.lower.sigmoid().sqrt()).view(column).to(x) * (x - estimate)
    gap = log_variance - low
    kl = 0.5 * (gap + (-gap).expm1() + moved.square() * (-log_variance).exp())
    term = torch.where(at.lowest.view(column), _pixel_nats(x, estimate, log_variance), kl)
    return term.flatten(1).mean(1) / math.log(2)


def _pixel_nats(x: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return -log of a normal's probability of the bin around x, open at both ends of [-1, 1]. [1] eq. (13)"""
    scale = (-0.5 * log_variance).exp()
    below, above = (x - mean - _HALF_BIN) * scale, (x - mean + _HALF_BIN) * scale
    # Whichever tail is the thinner: fp32 has no digits left of a probability near 1.
    right = below > 0
    inside = torch.where(right, ndtr(-below) - ndtr(-above), ndtr(above) - ndtr(below))
    whole = torch.where(x < -0.999, ndtr(above), torch.where(x > 0.999, ndtr(-below), inside))
    return -whole.clamp(min=_TINY).log()

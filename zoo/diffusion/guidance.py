"""Classifier-free guidance of any denoiser.

Letters: B batch, R rows the network sees (B, or 2B with both conditions).

[1] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598
[2] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from zoo.errors import ConfigError
from zoo.interfaces import Cond, Denoiser, Prediction
from zoo.nn.cached import with_null
from zoo.nn.precision import wide

Predict = Callable[[Tensor, Tensor], Prediction]
"""z [R,C,h,w] and log-SNR [R] to a prediction: a denoiser that has been told its condition."""


def check_guidance(denoiser: Any, guidance: float) -> None:
    """Refuse guidance of a denoiser that never learned its null condition.

    Raises:
        ConfigError: `guidance` is not 1 and the denoiser's config has `cond_drop` = 0, or none.
    """
    if guidance != 1 and getattr(getattr(denoiser, "config", None), "cond_drop", 0) == 0:
        raise ConfigError(
            f"guidance: {guidance:g} needs a denoiser trained with cond_drop > 0; this one has cond_drop = 0, so take 1"
        )


def told(denoiser: Denoiser, cond: Cond) -> Predict:
    """Return the denoiser's `conditioned(cond)`, which computes what depends on the condition alone once, or the same.

    The same is its `predict` with this condition.
    """
    if (conditioned := getattr(denoiser, "conditioned", None)) is not None:
        known: Predict = conditioned(cond)
        return known
    return partial(_predict, denoiser, cond)


def _predict(denoiser: Denoiser, cond: Cond, z: Tensor, logsnr: Tensor) -> Prediction:
    return denoiser.predict(z, logsnr, cond)


def guided(denoiser: Denoiser, cond: Cond, guidance: float, batch: int, device: torch.device) -> Predict:
    """Return what predicts w conditional + (1 - w) null [2] eq. (2) of B rows, both from one batch of 2B.

    In any parameterisation, since each is an affine map of every other at one z. The variance is the conditional one.

    Raises:
        ConfigError: see `check_guidance`.
    """
    check_guidance(denoiser, guidance)
    if guidance == 1:
        return told(denoiser, cond)
    if guidance == 0:
        return told(denoiser, attrs.evolve(cond, drop=torch.ones(batch, dtype=torch.bool, device=device)))
    both = told(denoiser, with_null(cond, batch, device))

    def predict(z: Tensor, logsnr: Tensor) -> Prediction:
        found = both(torch.cat((z, z)), torch.cat((logsnr, logsnr)))
        known, null = wide(found.mean).chunk(2)
        variance = None if found.variance is None else found.variance[:batch]
        return Prediction(torch.lerp(null, known, guidance), variance)

    return predict

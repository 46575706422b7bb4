"""Gaussian blur, for comparing pictures by what is left of them without their finest detail.

DALL-E's codes lose fine detail and keep what a picture shows; [1] figure 9 blurs real and generated pictures alike
before comparing them. It calls the parameter a radius in pixels and does not say what that is: here it is the standard
deviation, as in PIL.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from __future__ import annotations

import torch
from torch import Tensor


def blur(images: Tensor, radius: float) -> Tensor:
    """Return images [B,C,H,W] blurred with a Gaussian of standard deviation `radius` pixels; 0 changes nothing.

    At the border only what lies in the picture counts: a flat picture stays as it is, at any radius.

    Raises:
        ValueError: the radius is negative.
    """
    if radius < 0:
        raise ValueError(f"a blur radius is 0 or more, not {radius}")
    if radius == 0:
        return images
    rows, columns = (_weights(n, radius).to(images) for n in images.shape[-2:])
    return rows @ images @ columns.T


def _weights(n: int, radius: float) -> Tensor:
    """Return [n,n] float64: what each of n places in a row takes of each; every row sums to 1."""
    at = torch.arange(n, dtype=torch.float64)
    return (-((at[:, None] - at) ** 2) / (2 * radius**2)).softmax(1)

"""The variance-preserving process, and what the three parameterisations say of each other.

Letters: B batch; every x, z, eps and v is [B,C,h,w], every log-SNR [B]. Arithmetic is in fp32, or in fp64 where z is.

    z = alpha x + sigma eps        v = alpha eps - sigma x        alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr)

[1] T. Salimans, J. Ho: Progressive distillation for fast sampling of diffusion models. arXiv:2202.00512
"""

from __future__ import annotations

import math

from torch import Tensor

from zoo.errors import ConfigError, suggest
from zoo.nn.precision import wide

PREDICTIONS = ("eps", "v", "x0")
"""What a denoiser's `prediction` may be."""


def check_prediction(prediction: str) -> None:
    """Refuse a parameterisation that is none of `PREDICTIONS`.

    Raises:
        ConfigError: it is not.
    """
    if prediction not in PREDICTIONS:
        names = ", ".join(PREDICTIONS)
        raise ConfigError(f"prediction: must be one of {names}, not '{prediction}'{suggest(prediction, PREDICTIONS)}")


def coefficients(logsnr: float) -> tuple[float, float]:
    """Return alpha and sigma of a log-SNR, as Python's own (double) numbers; infinity is the clean picture's."""
    return _root_sigmoid(logsnr), _root_sigmoid(-logsnr)


def _root_sigmoid(x: float) -> float:
    return math.exp(-0.5 * math.log1p(math.exp(-x))) if x > 0 else math.exp(0.5 * (x - math.log1p(math.exp(x))))


def alpha_sigma(logsnr: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma [B,1,...] of log-SNRs [B], in the type of wide `like` and with as many dimensions."""
    column = logsnr.double().view(-1, *[1] * (like.ndim - 1))
    kind = wide(like).dtype
    return column.sigmoid().sqrt().to(kind), (-column).sigmoid().sqrt().to(kind)


def noised(x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """Return z, the picture x with noise eps at this log-SNR."""
    alpha, sigma = alpha_sigma(logsnr, x)
    return alpha * wide(x) + sigma * wide(eps)


def x0(prediction: str, mean: Tensor, z: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
    """Return the picture that a prediction means, of wide tensors, where alpha and sigma are at hand; see `to_x0`."""
    if prediction == "x0":
        return mean
    return alpha * z - sigma * mean if prediction == "v" else (z - sigma * mean) / alpha


def to_x0(prediction: str, mean: Tensor, z: Tensor, logsnr: Tensor) -> Tensor:
    """Return the picture that a prediction in this parameterisation means. [1] appendix D

    Raises:
        ConfigError: the parameterisation is none of `PREDICTIONS`.
    """
    check_prediction(prediction)
    return x0(prediction, wide(mean), wide(z), *alpha_sigma(logsnr, z))


def to_eps(prediction: str, mean: Tensor, z: Tensor, logsnr: Tensor) -> Tensor:
    """Return the noise that a prediction means; raises as `to_x0`."""
    check_prediction(prediction)
    if prediction == "eps":
        return wide(mean)
    alpha, sigma = alpha_sigma(logsnr, z)
    if prediction == "v":
        return sigma * wide(z) + alpha * wide(mean)
    return (wide(z) - alpha * wide(mean)) / sigma


def to_v(prediction: str, mean: Tensor, z: Tensor, logsnr: Tensor) -> Tensor:
    """Return the velocity that a prediction means; raises as `to_x0`."""
    check_prediction(prediction)
    if prediction == "v":
        return wide(mean)
    alpha, sigma = alpha_sigma(logsnr, z)
    if prediction == "eps":
        return (wide(mean) - sigma * wide(z)) / alpha
    return (alpha * wide(z) - wide(mean)) / sigma


def target(prediction: str, x: Tensor, eps: Tensor, logsnr: Tensor) -> Tensor:
    """Return what such a denoiser should answer at z = noised(x, eps, logsnr); raises as `to_x0`."""
    check_prediction(prediction)
    if prediction == "v":
        alpha, sigma = alpha_sigma(logsnr, x)
        return alpha * wide(eps) - sigma * wide(x)
    return wide(eps if prediction == "eps" else x)

"""The samplers: each walks z from the first noise level of a path to the clean picture.

A step k goes from level k (t) to level k + 1 (s), both known before the first one starts: every coefficient is a number
of Python's, in double precision, and no step waits for the device. Level n, behind the last, is the clean picture.

Letters: a alpha, b sigma, x the denoiser's estimate of the clean picture; a_s a at s.

[1] J. Ho, A. Jain, P. Abbeel: Denoising diffusion probabilistic models. arXiv:2006.11239
[2] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
[3] A. Nichol, P. Dhariwal: Improved denoising diffusion probabilistic models. arXiv:2102.09672
[4] J. Song, C. Meng, S. Ermon: Denoising diffusion implicit models. arXiv:2010.02502
[5] C. Lu et al.: DPM-Solver++. arXiv:2211.01095
[6] T. Karras et al.: Elucidating the design space of diffusion-based generative models. arXiv:2206.00364
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import torch
from torch import Tensor

from zoo.diffusion.config import Diffusing
from zoo.diffusion.process import coefficients

_EDM_START = 80.0
"""sigma / alpha at which EDM starts [6] table 1."""


@attrs.frozen(eq=False)
class Estimate:
    """What a denoiser makes of z at one level."""

    x: Tensor
    """[B,C,h,w] the clean picture."""
    variance: Tensor | None = None
    """[B,C,h,w] in [-1, 1]: where between its bounds the log-variance of a step lies [3] eq. (15), or None."""


class Estimator(Protocol):
    """A denoiser, its guidance and thresholding, and what is known of the picture."""

    def __call__(self, z: Tensor, k: int) -> Estimate:
        """Return the estimate from z at level k."""


Noise = Callable[[int], Tensor]
"""Step k to its standard normal numbers, of z's shape and type."""


class Path:
    """Noise levels, falling, and their coefficients.

    Args:
        logsnr: of the n levels at which the denoiser is asked, ascending.
    """

    def __init__(self, logsnr: Sequence[float]) -> None:
        self.logsnr = (*logsnr, math.inf)
        self.alpha, self.sigma = zip(*map(coefficients, self.logsnr), strict=True)

    def __len__(self) -> int:
        return len(self.logsnr) - 1

    def straight(self, k: int) -> tuple[float, float]:
        """Return b_s / b_t and a_s - a_t b_s / b_t: of z and x, keeping the noise that x leaves in z. [4] eq. (12)"""
        kept = self.sigma[k + 1] / self.sigma[k]
        return kept, self.alpha[k + 1] - self.alpha[k] * kept

    def fresh(self, k: int) -> float:
        """Return the share of t's noise that came after s, 1 - exp(logsnr_t - logsnr_s)."""
        return -math.expm1(self.logsnr[k] - self.logsnr[k + 1])


def solve(z: Tensor, path: Path, estimate: Estimator, how: Diffusing, noise: Noise) -> Tensor:
    """Return the clean picture [B,C,h,w] from z at the path's first level, in z's type.

    Reads `sampler`, `gamma` and `eta` of `how`. Stochastic samplers alone call `noise`, and not at the last level.
    """
    if how.sampler == "ddpm":
        return ancestral(z, path, estimate, noise, how.gamma)
    if how.sampler == "ddim":
        return ddim(z, path, estimate, noise, how.eta)
    return multistep(z, path, estimate) if how.sampler == "dpm++" else heun(z, path, estimate)


def ancestral(z: Tensor, path: Path, estimate: Estimator, noise: Noise, gamma: float = 0.0) -> Tensor:
    """Draw each step from q(z_s | z_t, x), with a variance between its own and the forward step's. [1] [2] appendix A

    A predicted variance says where between them [3] eq. (15); otherwise gamma does.
    """
    for k in range(len(path) - 1):
        found, fresh = estimate(z, k), path.fresh(k)
        of_z = (1 - fresh) * path.alpha[k + 1] / path.alpha[k]
        mean = (of_z * z).add_(found.x, alpha=fresh * path.alpha[k + 1])
        low, gap = math.sqrt(fresh) * path.sigma[k + 1], math.log(path.sigma[k] / path.sigma[k + 1])
        if found.variance is None:
            z = mean.add_(noise(k), alpha=low * math.exp(gamma * gap))
        else:
            between = (found.variance.to(z) + 1).mul_(gap / 2).exp_()
            z = mean.addcmul_(between, noise(k), value=low)
    return estimate(z, len(path) - 1).x


def ddim(z: Tensor, path: Path, estimate: Estimator, noise: Noise, eta: float = 0.0) -> Tensor:
    """Keep the noise that x leaves in z, but for a share eta of what the posterior renews. [4] eq. (12), (16)"""
    for k in range(len(path) - 1):
        x = estimate(z, k).x
        renewed = eta * math.sqrt(path.fresh(k)) * path.sigma[k + 1]
        kept = math.sqrt(path.sigma[k + 1] ** 2 - renewed**2) / path.sigma[k]
        z = (kept * z).add_(x, alpha=path.alpha[k + 1] - path.alpha[k] * kept)
        if eta:
            z.add_(noise(k), alpha=renewed)
    return estimate(z, len(path) - 1).x


def multistep(z: Tensor, path: Path, estimate: Estimator) -> Tensor:
    """DPM-Solver++(2M): the step of DDIM with x extrapolated from the last two levels in log-SNR. [5] algorithm 2

    The first step has no level before it, and the last, to the clean picture, takes x as it is. Where the log-SNR rises
    by more than in the step before, x is extrapolated as if by as much: in full it overshoots where levels are few, for
    which public code drops to the first order. The order stays two, since such steps grow equal as they get many.
    """
    last = None
    for k in range(len(path) - 1):
        found = x = estimate(z, k).x
        if last is not None:
            ahead, behind = path.logsnr[k + 1] - path.logsnr[k], path.logsnr[k] - path.logsnr[k - 1]
            x = torch.lerp(last, x, 1 + min(ahead / behind, 1.0) / 2)
        of_z, of_x = path.straight(k)
        z, last = (of_z * z).add_(x, alpha=of_x), found
    return estimate(z, len(path) - 1).x


def heun(z: Tensor, path: Path, estimate: Estimator) -> Tensor:
    """EDM's deterministic sampler [6] algorithm 1, for which z / a is x with noise of deviation b / a.

    Where a path starts above EDM's own levels, a step that more than halves the noise there takes the mean of both
    estimates instead of both slopes: over so wide a step the slopes' is far off. The last step is Euler's.
    """
    for k in range(len(path) - 1):
        x = estimate(z, k).x
        of_z, of_x = path.straight(k)
        ahead = (of_z * z).add_(x, alpha=of_x)
        start, end = (path.sigma[i] / path.alpha[i] for i in (k, k + 1))
        again = estimate(ahead, k + 1).x
        if start > _EDM_START and start > 2 * end:
            z = (of_z * z).add_(torch.lerp(x, again, 0.5), alpha=of_x)
            continue
        # The slope (z - a x) / b at both ends; half of each times a_s (end - start), on top of z's a_s / a_t.
        grown, half = path.alpha[k + 1] / path.alpha[k], path.alpha[k + 1] * (end - start) / 2
        here, there = half / path.sigma[k], half / path.sigma[k + 1]
        z = ((grown + here) * z).add_(x, alpha=-here * path.alpha[k])
        z.add_(ahead, alpha=there).add_(again, alpha=-there * path.alpha[k + 1])
    return estimate(z, len(path) - 1).x

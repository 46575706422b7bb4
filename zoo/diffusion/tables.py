"""Log-SNRs of the discrete schedules, from their betas, in double precision. Imports no torch.

[1] J. Ho, A. Jain, P. Abbeel: Denoising diffusion probabilistic models. arXiv:2006.11239
[2] A. Nichol, P. Dhariwal: Improved denoising diffusion probabilistic models. arXiv:2102.09672
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

COSINE_OFFSET = 0.008
"""s of the cosine schedule [2] eq. (17)."""
LARGEST_BETA = 0.999
"""Cap on the betas of the cosine schedule [2] section 3.2."""


def cosine_betas(steps: int) -> list[float]:
    """Return 1 - ratio of neighbouring cos^2, capped. [2] eq. (17)"""

    def kept(t: float) -> float:
        return math.cos((t + COSINE_OFFSET) / (1 + COSINE_OFFSET) * math.pi / 2) ** 2

    return [min(1 - kept((k + 1) / steps) / kept(k / steps), LARGEST_BETA) for k in range(steps)]


def linear_betas(steps: int) -> list[float]:
    """Return betas from 1e-4 to 0.02 over a thousand steps; of other numbers of steps, as much noise. [1] section 4"""
    low, high = 0.1 / steps, 20 / steps
    return [low + (high - low) * k / (steps - 1) for k in range(steps)]


DISCRETE: dict[str, tuple[int, Callable[[int], list[float]]]] = {
    "cosine-1000": (1000, cosine_betas),
    "cosine-4000": (4000, cosine_betas),
    "linear-1000": (1000, linear_betas),
}
"""Kind -> steps, and their betas."""


@lru_cache
def logsnrs(kind: str) -> tuple[float, ...]:
    """Return log(abar / (1 - abar)) of every step, descending, where abar is the product of 1 - beta so far."""
    steps, betas = DISCRETE[kind]
    kept, found = 0.0, []
    for beta in betas(steps):
        kept += math.log1p(-beta)
        found.append(kept - math.log(-math.expm1(kept)))
    return tuple(found)

"""95% intervals of shares, and of the difference of two shares over the same captions.

[1] E. Wilson: Probable inference, the law of succession, and statistical inference. J. American Statistical
    Association 22, 1927.
"""

from __future__ import annotations

import math

import numpy as np

Z = 1.959964
"""97.5% quantile of the normal distribution: 95% lie between -Z and Z."""


def wilson(good: int, count: int) -> tuple[float, float]:
    """Return the 95% interval of a share of which `good` of `count` were seen. [1]

    With p = good / n it is (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n): within [0, 1], and of a width
    above zero also where all are good, or none.

    Raises:
        ValueError: `count` is below 1, or `good` outside [0, count].
    """
    if not 0 <= good <= count or count < 1:
        raise ValueError(f"{good} of {count} is no share")
    p, shrink = good / count, Z**2 / count
    centre, half = p + shrink / 2, Z * math.sqrt(p * (1 - p) / count + shrink / (4 * count))
    # of none or all, rounding may leave the end that is 0 or 1 a little off
    return max(0.0, (centre - half) / (1 + shrink)), min(1.0, (centre + half) / (1 + shrink))


def paired(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float, float]:
    """Return (mean, low, high) of the difference of two shares seen on the same captions, with its 95% interval.

    Of the differences d_i = ours_i - theirs_i in {-1, 0, 1} with mean m and sample variance s² = Σ (d_i - m)² / (n - 1)
    it is m ± z s / sqrt(n), the normal approximation, cut to [-1, 1]. What both get right or both get wrong adds no
    noise: with common seeds it is narrower than the difference of two independent shares. It is too narrow where few
    captions differ (below about ten); where none does, its width is 0 and says nothing.

    Args:
        ours, theirs: bool [n], n of 2 or more.

    Raises:
        ValueError: the numbers of captions differ, or there are fewer than two.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"a paired difference needs two captions or more of both, not {len(ours)} and {len(theirs)}")
    d = np.asarray(ours, dtype=float) - np.asarray(theirs, dtype=float)
    mean, half = float(d.mean()), Z * float(d.std(ddof=1)) / math.sqrt(len(d))
    return mean, max(-1.0, mean - half), min(1.0, mean + half)

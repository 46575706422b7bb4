"""The cosine annealing that the dVAE's KL weight and temperature follow. Imports no torch."""

import math


def cosine(start: float, end: float, updates: int, step: int) -> float:
    """Return the value at update `step` of half a cosine from `start` (step 0) to `end` (step `updates`, and after).

    With `updates` 0 the value is `end` from the first step on.
    """
    if step >= updates:
        return end
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * step / updates))

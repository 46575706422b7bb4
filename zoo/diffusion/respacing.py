"""Which of a discrete schedule's steps a sampler visits. Imports no torch.

[1] A. Nichol, P. Dhariwal: Improved denoising diffusion probabilistic models. arXiv:2102.09672
[2] github.com/deep-floyd/IF, deepfloyd_if/modules/base.py (the names) and model/respace.py (the rule)
"""

from __future__ import annotations

from zoo.errors import suggest

NAMED = {
    "fast27": "10,10,3,2,2",
    "smart27": "7,4,2,1,2,4,7",
    "smart50": "10,6,4,3,2,2,3,4,6,10",
    "smart100": "1,1,1,1,2,2,2,2,2,2,3,3,4,4,5,5,6,7,7,8,9,10,13",
    "smart185": "1,1,2,2,2,3,3,3,4,5,6,7,8,9,10,11,12,13,14,15,16,18,20",
    "super27": "1,1,1,1,1,1,1,2,5,13",
    "super40": "2,2,2,2,2,2,3,4,6,15",
    "super100": "4,4,6,6,8,8,10,10,14,30",
}
"""Name -> steps of each section, least noise first; the numbers in the names are their sums [2]."""


def counts(spacing: str) -> tuple[int, ...]:
    """Return the steps of each section of "10,10,3,2,2" or of a name in `NAMED`.

    Raises:
        ValueError: neither a name nor positive integers with commas between.
    """
    parts = [part.strip() for part in NAMED.get(spacing, spacing).split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        known = f"; names are {', '.join(NAMED)}"
        raise ValueError(f"'{spacing}' is no list of steps a section, as 10,10,3,2,2{suggest(spacing, NAMED) or known}")
    return tuple(int(part) for part in parts)


def spaced(steps: int, sections: tuple[int, ...]) -> list[int]:
    """Return the visited steps in [0, `steps`), ascending: equal sections, each evenly from end to end. [1] section 4

    Raises:
        ValueError: a section is asked for more steps than it has.
    """
    size, extra = divmod(steps, len(sections))
    visited, start = [], 0
    for i, count in enumerate(sections):
        has = size + (i < extra)
        if count > has:
            raise ValueError(f"{count} are more than the {has} steps of section {i + 1} of {len(sections)}")
        stride = (has - 1) / (count - 1) if count > 1 else 1.0
        at = 0.0
        for _ in range(count):  # summed, as public code does: k * stride rounds otherwise in a few places
            visited.append(start + round(at))
            at += stride
        start += has
    return visited

"""Diffusion, once for every family: schedules, losses and samplers of any `zoo.interfaces.Denoiser`.

    from zoo.diffusion.config import Diffusing, Schedule        # imports no torch
    from zoo.diffusion import draw                              # imports it when first used

A denoiser is anything that answers `predict(z, logsnr, cond)`, and says its `prediction`, `schedule` and whether it is
`bounded`; a sampler knows no more of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.diffusion.sampling import draw

__all__ = ["draw"]


def __getattr__(name: str) -> Any:
    if name == "draw":
        from zoo.diffusion.sampling import draw

        return draw
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

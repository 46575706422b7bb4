"""Drawing from a denoiser: which noise levels are visited, what the network is asked there, and what is kept.

Letters: B batch, C channels, h w the latent's sides.

[1] C. Meng et al.: SDEdit. arXiv:2108.01073 (starting from a noised picture)
[2] A. Lugmayr et al.: RePaint. arXiv:2201.09865 (a known region; here without its jumps back)
[3] T. Karras et al.: Elucidating the design space of diffusion-based generative models. arXiv:2206.00364
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.diffusion import respacing, threshold
from zoo.diffusion.config import Diffusing, Schedule
from zoo.diffusion.guidance import Predict, guided
from zoo.diffusion.process import check_prediction, x0
from zoo.diffusion.samplers import Estimate, Path, solve
from zoo.errors import ConfigError
from zoo.interfaces import Cond, Denoiser
from zoo.nn.precision import wide
from zoo.rng import Rng

Given = tuple[Tensor, Tensor]


def draw(
    denoiser: Denoiser,
    cond: Cond,
    shape: tuple[int, int, int],
    how: Diffusing,
    rng: Rng,
    *,
    progress: Callable[[int], Any] | None = None,
    start: tuple[Tensor, float] | None = None,
    known: Given | None = None,
) -> Tensor:
    """Return z [B,C,h,w], fp32 (fp64 where `start` or `known` is), drawn as `how` says; no gradient.

    Row i depends on row i of `rng` and of the condition alone. Arithmetic is fp32 or fp64, whatever the network's.

    Args:
        denoiser: with `predict`, or `conditioned(cond)` that returns the same of z and log-SNR.
        cond: B rows, on the denoiser's device.
        shape: (C, h, w).
        how: sampler, steps, guidance, thresholding and noise levels.
        rng: B rows.
        progress: called with 1 whenever the network has been asked, `how.evaluations` times without `start`.
        start: z0 [B,C,h,w] and a time in (0, 1]: begin from z0 noised to that time instead of from noise [1]; of a
            discrete schedule, to the lowest visited step that is not below it.
        known: z0 [B,C,h,w] and a mask [B,1,h,w], True where z0 is kept: it is in the result to the bit. Simpler than
            [2]: no step is done again, and what is known replaces the estimate rather than z.

    Raises:
        ConfigError: guidance of a denoiser without a null condition, a spacing that the noise schedule does not have,
            more steps than it has, or a given picture, mask or time of the wrong shape or range.
    """
    check_prediction(denoiser.prediction)
    batch, device = len(rng), device_of(denoiser, cond)
    full = (batch, *shape)
    strength = 1.0 if start is None else start[1]
    with torch.inference_mode():
        path = Path(levels(how.schedule or denoiser.schedule, how, strength))
        z0 = None if start is None else _picture("start", start[0], full, device)
        held = None if known is None else _known(known, full, device)
        predict = guided(denoiser, cond, how.guidance, batch, device)
        z = _first(path, rng.fork("noise").normal(*shape, device=device), z0, held)

        def noise(k: int) -> Tensor:
            return rng.fork(f"step {k}").normal(*shape, device=device).to(z)

        estimate = _Estimator(denoiser, predict, how, path, z, held, progress)
        found = solve(z, path, estimate, how, noise)
    return found.clone()  # outside, so that it is no inference tensor


def device_of(denoiser: Any, cond: Cond) -> torch.device:
    """Return where a denoiser works: where its parameters are, or, without any, its condition."""
    first = next(denoiser.parameters(), None) if isinstance(denoiser, nn.Module) else None
    for x in (first, *cond.filled().values()):
        if x is not None:
            return torch.device(x.device)
    return torch.device("cpu")


def levels(schedule: Schedule, how: Diffusing, strength: float = 1.0) -> list[float]:
    """Return the log-SNRs at which the denoiser is asked, ascending; the first is the start's.

    A continuous law is visited at equal steps of time from `strength` (or where its clamp begins) down to one step
    before 0, since the last step goes to the clean picture from wherever it is; EDM's levels include their last [3]
    eq. (5). Of a discrete one, those steps of `respacing.spaced` that are below `strength`, 0 among them, and the one
    above them: drawing begins where it is asked to, or with a little more noise.

    Raises:
        ConfigError: see `draw`.
    """
    if not 0 < strength <= 1:
        raise ConfigError(f"start: its time must be in (0, 1], not {strength:g}")
    count = schedule.steps
    if count is not None:
        visited = _visited(count, how)
        first = bisect_left(visited, round(strength * count, 6))  # 0.07 * 1000 is above 70
        times = torch.tensor(visited[first::-1], dtype=torch.float64) / count
    else:
        if how.spacing is not None:
            raise ConfigError(
                f"spacing: '{how.spacing}' chooses among discrete steps, and the schedule '{schedule.kind}' has none; "
                f"leave it out, or set a schedule of kind 'cosine-1000' or 'linear-1000'"
            )
        times = _times(schedule, how.steps, strength)
    found: list[float] = schedule.logsnr(times).tolist()
    return found


def _times(schedule: Schedule, steps: int, strength: float) -> Tensor:
    """Return equally spaced times of a continuous law, falling, where no clamp makes two levels one."""
    ends = torch.tensor([0.0, strength, 1.0], dtype=torch.float64)
    low, first, high = schedule.time(schedule.logsnr(ends)).tolist()
    n = max(1, round(steps * (first - low) / (high - low)))
    last = low if schedule.kind == "edm" and n > 1 else low + (first - low) / n
    return torch.linspace(first, last, n, dtype=torch.float64)


def _visited(count: int, how: Diffusing) -> list[int]:
    """Return the visited steps of `count` discrete ones, ascending."""
    if how.spacing is None and how.steps > count:
        raise ConfigError(f"steps: {how.steps} are more than the {count} of the noise schedule")
    try:
        return respacing.spaced(count, (how.steps,) if how.spacing is None else respacing.counts(how.spacing))
    except ValueError as cause:
        raise ConfigError(f"spacing: {cause}") from None


class _Estimator:
    """A denoiser as a sampler sees it; see `zoo.diffusion.samplers.Estimator`."""

    def __init__(
        self, denoiser: Denoiser, predict: Predict, how: Diffusing, path: Path, z: Tensor, known: Given | None,
        progress: Callable[[int], Any] | None,
    ) -> None:  # fmt: skip
        self.predict, self.known, self.progress, self.path = predict, known, progress, path
        self.prediction, self.how = denoiser.prediction, how
        self.bounded = bool(getattr(denoiser, "bounded", False))
        # Moved to the device once; a row of it is then the same number for every row of the batch.
        self.logsnr = torch.tensor(path.logsnr[:-1], dtype=z.dtype, device=z.device)[:, None].expand(-1, len(z))

    def __call__(self, z: Tensor, k: int) -> Estimate:
        found = self.predict(z, self.logsnr[k])
        mean = wide(found.mean).to(z)
        x = self._bound(x0(self.prediction, mean, z, self.path.alpha[k], self.path.sigma[k]))
        if self.known is not None:
            x = torch.where(self.known[1], self.known[0], x)
        if self.progress is not None:
            self.progress(1)
        return Estimate(x, found.variance)

    def _bound(self, x: Tensor) -> Tensor:
        if not self.bounded or self.how.threshold == "off":
            return x
        if self.how.threshold == "static":
            return threshold.static(x)
        return threshold.dynamic(x, self.how.percentile, self.how.cap)


def _first(path: Path, noise: Tensor, z0: Tensor | None, known: Given | None) -> Tensor:
    """Return z at the first level: noise, on top of the start's picture, and of the known region.

    From there on the estimate is the known picture where that is known, whence every sampler keeps to it: the
    posterior, or the straight line, of the true picture instead of an estimate of it.
    """
    kinds = [x.dtype for x in (z0, known[0] if known else None) if x is not None]
    noise = noise.to(torch.float64 if torch.float64 in kinds else torch.float32)
    z = noise if z0 is None else (path.sigma[0] * noise).add_(z0, alpha=path.alpha[0])
    if known is None:
        return z
    return torch.where(known[1], path.alpha[0] * known[0] + path.sigma[0] * noise, z)


def _picture(what: str, z0: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if tuple(z0.shape) != shape:
        raise ConfigError(f"{what}: must have shape {list(shape)}, not {list(z0.shape)}")
    return wide(z0.to(device))


def _known(known: Given, shape: tuple[int, ...], device: torch.device) -> Given:
    mask = known[1].to(device)
    plain = (shape[0], 1, *shape[2:])
    if tuple(mask.shape) != plain or mask.dtype != torch.bool:
        raise ConfigError(f"known: its mask must be bool of shape {list(plain)}, not {mask.dtype} {list(mask.shape)}")
    return _picture("known", known[0], shape, device), mask

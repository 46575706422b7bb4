"""The maps between time and log-SNR of every kind of `zoo.diffusion.config.Schedule`, in double precision."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import softplus

from zoo.diffusion import tables
from zoo.diffusion.config import Schedule

_SNAP = 0.01
"""Steps within which a time is taken to be the step itself: fp32 moves it by less than 1e-3."""
_SIGMA_MIN, _SIGMA_MAX, _RHO = 0.002, 80.0, 7.0
_RATE = math.pi / 2 / (1 + tables.COSINE_OFFSET)


def logsnr(schedule: Schedule, t: Tensor) -> Tensor:
    """Return the log-SNR at t; see `Schedule.logsnr`."""
    wide = t.double().clamp(0, 1)
    if schedule.discrete:
        found = _between(_table(schedule.kind, t.device), wide * _steps(schedule)) + schedule.shift
    else:
        found = (_continuous(schedule.kind, wide) + schedule.shift).clamp(schedule.logsnr_min, schedule.logsnr_max)
    return found.to(t.dtype)


def time(schedule: Schedule, logsnr: Tensor) -> Tensor:
    """Return the time of a log-SNR; see `Schedule.time`."""
    wide = logsnr.double() - schedule.shift
    found = _position(schedule, wide) / _steps(schedule) if schedule.discrete else _inverse(schedule.kind, wide)
    return found.clamp(0, 1).to(logsnr.dtype)


def at_step(schedule: Schedule, k: Tensor) -> Tensor:
    """Return the log-SNR [B] fp64 of the discrete steps k [B] int64."""
    return _table(schedule.kind, k.device)[k] + schedule.shift


def _continuous(kind: str, t: Tensor) -> Tensor:
    if kind == "cosine":
        return -2 * ((t + tables.COSINE_OFFSET) * _RATE).tan().log()
    if kind == "linear":
        return -(1e-4 + 10 * t.square()).expm1().log()
    low, high = _SIGMA_MIN ** (1 / _RHO), _SIGMA_MAX ** (1 / _RHO)
    return -2 * _RHO * torch.lerp(torch.full_like(t, low), torch.full_like(t, high), t).log()


def _inverse(kind: str, logsnr: Tensor) -> Tensor:
    if kind == "cosine":
        return (-logsnr / 2).exp().atan() / _RATE - tables.COSINE_OFFSET
    if kind == "linear":
        return ((softplus(-logsnr) - 1e-4).clamp(min=0) / 10).sqrt()
    low, high = _SIGMA_MIN ** (1 / _RHO), _SIGMA_MAX ** (1 / _RHO)
    return ((-logsnr / (2 * _RHO)).exp() - low) / (high - low)


def _steps(schedule: Schedule) -> int:
    return tables.DISCRETE[schedule.kind][0]


@torch.compiler.assume_constant_result
def _table(kind: str, device: torch.device) -> Tensor:
    return _kept(kind, device)  # behind a function, since what a compiler takes for a constant may have no cache


@lru_cache
def _kept(kind: str, device: torch.device) -> Tensor:
    # Kept, so it must not be an inference tensor: the next to read it may be a training.
    with torch.inference_mode(False):
        return torch.tensor(tables.logsnrs(kind), dtype=torch.float64, device=device)


def _between(table: Tensor, k: Tensor) -> Tensor:
    """Return the table at fractional positions k; beyond its last entry, that entry."""
    k = k.clamp(max=len(table) - 1)
    low = k.long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], k - low)


def _position(schedule: Schedule, logsnr: Tensor) -> Tensor:
    """Return the fractional position of log-SNRs (without shift) in the descending table."""
    table = _table(schedule.kind, logsnr.device)
    low = (torch.searchsorted(-table, -logsnr, right=True) - 1).clamp(0, len(table) - 2)
    k = (low + (logsnr - table[low]) / (table[low + 1] - table[low])).clamp(0, len(table) - 1)
    near = k.round()
    return torch.where((k - near).abs() < _SNAP, near, k)

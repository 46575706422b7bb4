"""Random numbers that depend on the sample and not on where it is computed.

Row i of what an `Rng` draws depends only on (seed, step, key of row i): never on the rank, the micro-batch, the
device or the rows beside it. It is counter based, so it has no state to save: a run resumes with the same numbers
because it resumes at the same step.

The mixing function is the finaliser of SplitMix64 [1], applied to distinct counters.

[1] G. Steele, D. Lea, C. Flood: Fast splittable pseudorandom number generators. OOPSLA 2014.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: odd, so counters never collide
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place, on int64 (torch's int64 products wrap, its shifts keep the sign)."""
    z.bitwise_xor_((z >> 30).bitwise_and_((1 << 34) - 1)).mul_(_MIX1)
    z.bitwise_xor_((z >> 27).bitwise_and_((1 << 37) - 1)).mul_(_MIX2)
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))


def _mix_int(*values: int) -> int:
    """Fold integers into one int64, in order."""
    state = torch.zeros(1, dtype=torch.int64)
    for value in values:
        signed = (value + (1 << 63)) % (1 << 64) - (1 << 63)
        state = _mix(state.add_(signed).add_(_GOLDEN))
    return int(state)


class Rng:
    """A source of random rows.

    Args:
        seed: the run's seed.
        rows: one integer key a row: position of the sample in the global batch, or a candidate's number.
        step: the update, or 0.
    """

    def __init__(self, seed: int, rows: Sequence[int] | Tensor, *, step: int = 0) -> None:
        keys = torch.as_tensor(rows, dtype=torch.int64).clone()
        self._seed, self._step = seed, step
        self._base = _mix(keys.mul_(_GOLDEN).add_(_mix_int(seed, step)))
        self._draws = 0

    def __len__(self) -> int:
        return len(self._base)

    def _copy(self, base: Tensor) -> Rng:
        twin = object.__new__(Rng)
        twin._seed, twin._step, twin._base, twin._draws = self._seed, self._step, base, self._draws
        return twin

    def __getitem__(self, rows: slice) -> Rng:
        """Return the source of these rows alone; it draws what this one would have drawn for them."""
        return self._copy(self._base[rows])

    def fork(self, name: str) -> Rng:
        """Return an independent source for the same rows; one name always gives the same one."""
        twin = self._copy(_mix(self._base + _mix_int(zlib.crc32(name.encode()))))
        twin._draws = 0
        return twin

    def whole(self, name: str) -> Rng:
        """Return a source of one row that is the same on every rank and micro-batch of this step."""
        return Rng(self._seed, [-1 - zlib.crc32(name.encode())], step=self._step)

    def _bits(self, shape: tuple[int, ...], device: torch.device | str | None) -> Tensor:
        n = math.prod(shape)
        base = self._base.to(device) if device is not None else self._base
        start = _mix(base + _mix_int(self._draws))  # each draw has its own stream
        self._draws += 1
        counter = torch.arange(1, n + 1, device=start.device).mul_(_GOLDEN)
        return _mix(start[:, None] + counter).view(len(start), *shape)

    def uniform(self, *shape: int, device: torch.device | str | None = None) -> Tensor:
        """Return float32 in (0, 1), both ends excluded, of shape [rows, *shape]."""
        high = (self._bits(shape, device) >> 41).bitwise_and_((1 << 23) - 1)
        return high.float().add_(0.5).mul_(2.0**-23)

    def normal(self, *shape: int, device: torch.device | str | None = None) -> Tensor:
        """Return standard normal float32 of shape [rows, *shape] (Box and Muller)."""
        bits = self._bits(shape, device)
        u = (bits >> 32).bitwise_and_((1 << 32) - 1).double().add_(0.5).mul_(2.0**-32)
        angle = bits.bitwise_and_((1 << 32) - 1).double().mul_(2 * math.pi * 2.0**-32)
        return u.log_().mul_(-2).sqrt_().mul_(angle.cos_()).float()

    def gumbel(self, *shape: int, device: torch.device | str | None = None) -> Tensor:
        """Return standard Gumbel float32 of shape [rows, *shape]."""
        return self.uniform(*shape, device=device).log_().neg_().log_().neg_()

    def integers(self, high: int, *shape: int, device: torch.device | str | None = None) -> Tensor:
        """Return int64 in [0, high) of shape [rows, *shape]."""
        bits = (self._bits(shape, device) >> 11).bitwise_and_((1 << 53) - 1)
        return (bits.double() * (high * 2.0**-53)).long().clamp_(max=high - 1)

"""Finite scalar quantisation: a codebook that is a grid, with nothing to learn and nothing to collapse.

It has the interface of `zoo.nn.quantise.VectorQuantiser`.

Letters: B samples, D channels, K codes.

[1] F. Mentzer et al.: Finite scalar quantization: VQ-VAE made simple. arXiv:2309.15505.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.nn import across
from zoo.nn.precision import wide
from zoo.nn.quantise import Quantised, code_curves, straight_through
from zoo.rng import Rng


class ScalarQuantiser(nn.Module):
    """Finite scalar quantisation: each of D channels is bounded and rounded to its own few levels. [1]

    There is no codebook and no loss; gradients pass the rounding straight through. K is the product of the levels.
    """

    whole_batch = False

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels, self.width, self.vocab_size = levels, len(levels), math.prod(levels)

    def _shaped(self, values: Sequence[float], like: Tensor) -> Tensor:
        """Return one value a channel, shaped to broadcast over `like` [B,D,...]."""
        return torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, *[1] * (like.dim() - 2))

    def _half(self, like: Tensor) -> Tensor:
        return self._shaped([n // 2 for n in self.levels], like)

    def continuous(self, z: Tensor) -> Tensor:
        """Return z bounded to about [-1, 1], where `snap` rounds it. [1] appendix A"""
        z = wide(z)
        reach = self._shaped([(n - 1) * (1 + 1e-3) / 2 for n in self.levels], z)
        offset = self._shaped([0.5 * (n % 2 == 0) for n in self.levels], z)
        return ((z + (offset / reach).atanh()).tanh() * reach - offset) / self._half(z)

    def snap(self, y: Tensor) -> Tensor:
        """Return bounded values [B,D,...] rounded to their levels."""
        half = self._half(y)
        top = self._shaped([n - 1 - n // 2 for n in self.levels], y)
        return torch.minimum((y * half).round(), top).maximum(-half) / half

    def forward(self, z: Tensor, rng: Rng | None = None) -> Quantised:
        """Quantise z [B,D,...]; `rng` is not used."""
        with torch.autocast(z.device.type, enabled=False):
            y = self.continuous(z)
            q = straight_through(y, self.snap(y))
            codes = self._index(q.detach())
        used_K = torch.bincount(codes.flatten(), minlength=self.vocab_size).to(y)
        curves = code_curves(across.sum(used_K) if self.training else used_K)
        return Quantised(q, codes, y.new_zeros(len(z)), curves)

    def _index(self, q: Tensor) -> Tensor:
        digits = ((q + 1) * self._half(q)).round().long()
        basis = [math.prod(self.levels[:i]) for i in range(self.width)]
        return (digits * self._shaped(basis, digits)).sum(1)

    def encode(self, z: Tensor) -> Tensor:
        """Return the codes [B,...] of z [B,D,...]: the first channel is the lowest digit."""
        with torch.autocast(z.device.type, enabled=False):
            return self._index(self.snap(self.continuous(z.detach())))

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors [B,D,...] of codes [B,...]."""
        digits, rest = [], codes
        for n in self.levels:
            digits.append(rest % n)
            rest = rest // n
        values = torch.stack(digits, dim=1).to(torch.get_default_dtype())
        half = self._half(values)
        return (values - half) / half

    def rms(self) -> Tensor:
        """Return the root mean square of all the levels."""
        return self.decode(torch.arange(self.vocab_size)).square().mean().sqrt()

"""Convolution of every channel with a kernel as long as the sequence, by FFT, in one direction or in both.

Letters: B batch, L length, H channels, n length of the transforms, F = n/2 + 1.

The input is transformed once for both directions. A kernel that runs backwards in time has the conjugate spectrum; with
n at least 2L - 1 nothing wraps around. Transforms are made of blocks of channels, so spectra of the whole input are
never held; kept for the backward pass are the input, as it came, and the kernels.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fft
from torch.autograd.function import once_differentiable

from zoo.nn.blocks import blocks


def convolve(u: Tensor, causal: Tensor, reverse: Tensor | None = None) -> Tensor:
    """Return [B,L,H] with y[l] = Σ_m causal[m] u[l - m]; with a reverse kernel [B,L,2H], Σ_m reverse[m] u[l + m] after.

    Args:
        u: [B,L,H].
        causal: [H,L], fp32 or fp64: the precision that is computed in. The result has that of u.
        reverse: [H,L].
    """
    say_if_half(u)
    made: Tensor = _Convolve.apply(u, causal) if reverse is None else _Convolve.apply(u, causal, reverse)
    return made


def spectra(kernels: Sequence[Tensor]) -> Tensor:
    """Return what `convolve_with` takes, [1,H,F] or [2,H,F] complex, of one kernel [H,L] or of both."""
    channels, length = kernels[0].shape
    n = fast_length(2 * length - 1)
    dtype = kernels[0].dtype.to_complex()
    made = torch.empty(len(kernels), channels, n // 2 + 1, dtype=dtype, device=kernels[0].device)
    for part in blocks(channels, len(kernels) * n, kernels[0].device):
        made[:, part] = _spectra(kernels, part, n)
    return made


def convolve_with(u: Tensor, known: Tensor) -> Tensor:
    """Return `convolve(u, *kernels)` by the kernels' spectra, without gradient."""
    say_if_half(u)
    return _convolved(u, lambda part: known[:, part], len(known), known.real.dtype)


def fast_length(least: int) -> int:
    """Return the smallest even number of at least so many whose prime factors are 2, 3 and 5."""
    n = max(2, least + least % 2)
    while not _smooth(n):
        n += 2
    return n


def say_if_half(u: Tensor) -> None:
    """Warn, once in a process, where u has half precision."""
    if u.dtype in (torch.float16, torch.bfloat16):
        _say_kept_wide()


@functools.cache
def _say_kept_wide() -> None:
    warnings.warn("half precision asked of the FFT: kept in fp32", stacklevel=4)


def _smooth(n: int) -> bool:
    for prime in (2, 3, 5):
        while n % prime == 0:
            n //= prime
    return n == 1


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, *kernels: Tensor) -> Tensor:
        ctx.save_for_backward(u, *kernels)
        n = fast_length(2 * u.shape[1] - 1)
        return _convolved(u, lambda part: _spectra(kernels, part, n), len(kernels), kernels[0].dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, *kernels = ctx.saved_tensors
        (batch, length, channels), dtype = u.shape, kernels[0].dtype
        n = fast_length(2 * length - 1)
        u_grad, kernel_grads = torch.empty_like(u), [torch.empty_like(kernel) for kernel in kernels]
        for part in blocks(channels, batch * n, u.device):
            # A product's gradient has the other factor's conjugate.
            spectrum = _spectra(kernels, part, n).conj_physical_()
            x = _transform(u[..., part], n, dtype).conj_physical_()
            total = torch.zeros_like(x)
            for i, kernel_grad in enumerate(kernel_grads):
                begin = i * channels
                g = _transform(grad[..., begin + part.start : begin + part.stop], n, dtype)
                of_kernel = (g * x).sum(0)
                kernel_grad[part] = fft.irfft(of_kernel if i == 0 else of_kernel.conj_physical_(), n)[:, :length]
                total += g.mul_(spectrum[i])
            u_grad[..., part] = fft.irfft(total, n)[..., :length].mT
        return u_grad, *kernel_grads


def _convolved(u: Tensor, spectrum: Callable[[slice], Tensor], directions: int, dtype: torch.dtype) -> Tensor:
    """Return [B,L,directions*H]; `spectrum` returns [directions,h,F] of some channels."""
    batch, length, channels = u.shape
    n = fast_length(2 * length - 1)
    y = u.new_empty(batch, length, directions, channels)
    for part in blocks(channels, batch * n, u.device):
        x = _transform(u[..., part], n, dtype)
        for i, of_kernel in enumerate(spectrum(part)):
            y[:, :, i, part] = fft.irfft(x * of_kernel, n)[..., :length].mT
    return y.flatten(2)


def _transform(x: Tensor, n: int, dtype: torch.dtype) -> Tensor:
    """Return the spectra [B,h,F] of [B,L,h], which is transposed and padded in one copy."""
    padded = x.new_zeros(x.shape[0], x.shape[2], n, dtype=dtype)
    padded[..., : x.shape[1]] = x.mT
    return fft.rfft(padded)


def _spectra(kernels: Sequence[Tensor], part: slice, n: int) -> Tensor:
    """Return [directions,h,F] of some channels; the second kernel's runs backwards."""
    made = torch.stack([fft.rfft(kernel[part], n) for kernel in kernels])
    made[1:].conj_physical_()
    return made

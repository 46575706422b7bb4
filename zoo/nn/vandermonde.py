"""Sums of powers of complex numbers, without the table of all powers.

The kernel of a diagonal state space model is K[l] = 2 Re Σ_n c_n a_n^l for l < L: a Vandermonde product, of which
[1] forms all H x N x L powers. With l = i S + j each is a_n^(i S) a_n^j, so that K is one real matrix product of
[L/S, 2N] by [2N, S] for every channel, and with S near √L no more than 2 √L powers of each number are needed.

Letters: H channels, N numbers of a channel, L length, I = L/S rounded up.

[1] A. Gu, A. Gupta, K. Goel, C. Ré: On the Parameterization and Initialization of Diagonal State Space Models.
    arXiv:2206.11893
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.nn.blocks import blocks
from zoo.nn.precision import full_precision


def power_sums(log_a: Tensor, c: Tensor, first: Tensor, length: int) -> Tensor:
    """Return K [H,L]: K[l] = 2 Re Σ_n c_n exp(l log a_n), and `first` added to K[0].

    Keeps its arguments for the backward pass and nothing else: powers are made again.

    Args:
        log_a: [H,N] complex, the logarithms of the numbers.
        c: [H,N] complex.
        first: [H] real.
        length: L, at least 1.
    """
    made: Tensor = _PowerSums.apply(log_a, c, first, length)
    return made


class _PowerSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_a: Tensor, c: Tensor, first: Tensor, length: int) -> Tensor:
        ctx.save_for_backward(log_a, c)
        sums = first.new_empty(len(first), length)
        coarse, fine = _places(length, first)
        with full_precision(first):
            for rows in blocks(len(first), 2 * (len(coarse) + len(fine)) * c.shape[1], c.device):
                left = 2 * (c[rows, None] * _powers(log_a[rows], coarse)).conj()
                sums[rows] = (_real(left) @ _real(_powers(log_a[rows], fine)).mT).flatten(1)[:, :length]
        sums[:, 0] += first
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        log_a, c = ctx.saved_tensors
        length = grad.shape[1]
        log_a_grad, c_grad = torch.empty_like(log_a), torch.empty_like(c)
        coarse, fine = _places(length, grad)
        with full_precision(grad):
            for rows in blocks(len(grad), 2 * (len(coarse) + len(fine)) * c.shape[1], c.device):
                whole = grad.new_zeros(len(grad[rows]), len(coarse) * len(fine))
                whole[:, :length] = grad[rows]
                k_grad = whole.view(-1, len(coarse), len(fine))
                a_i, a_j = _powers(log_a[rows], coarse), _powers(log_a[rows], fine)
                left = 2 * (c[rows, None] * a_i).conj()
                left_grad, a_j_grad = _complex(k_grad @ _real(a_j)), _complex(k_grad.mT @ _real(left))
                # Both arguments meet the coarse powers in conj(2 c a_i), of which this is the gradient times a_i.
                towards = 2 * left_grad * a_i
                c_grad[rows] = towards.sum(1).conj()
                log_a_grad[rows] = (c[rows] * (towards * coarse[:, None]).sum(1)).conj()
                log_a_grad[rows] += (a_j_grad * a_j.conj() * fine[:, None]).sum(1)
        return log_a_grad, c_grad, grad[:, 0].clone(), None


def _places(length: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the exponents i S and j, whose sums are 0 .. L - 1 and, where S does not divide L, a few more."""
    size = 2 ** round(math.log2(length) / 2)
    coarse = torch.arange(0, length, size, device=like.device, dtype=like.dtype)
    return coarse, torch.arange(size, device=like.device, dtype=like.dtype)


def _powers(log_a: Tensor, exponents: Tensor) -> Tensor:
    """Return a^k [H,K,N]. Real functions, which torch computes several times faster than the complex exponential."""
    size = (exponents[:, None] * log_a.real[:, None]).exp_()
    angle = exponents[:, None] * log_a.imag[:, None]
    return torch.complex(angle.cos().mul_(size), angle.sin().mul_(size))


def _real(x: Tensor) -> Tensor:
    """Return [..,N] complex as [..,2N] real, whose products are Re Σ x conj(y)."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2)


def _complex(x: Tensor) -> Tensor:
    """Return [..,2N] real as [..,N] complex."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))

"""S4D, the diagonal state space layer [1], in one direction or in both.

Every channel is a linear system of N states in conjugate pairs, of which one each is stored:
x' = A x + B u, y = 2 Re C x + D u, sampled in steps dt of its own. All of it is learned. Over a sequence it is a
convolution with its impulse response, see `zoo.nn.vandermonde` and `zoo.nn.fftconv`; one step at a time it is `step`.

Initial values are those of state-spaces/s4 at e757cef, whose `models/s4/s4d.py` has parameters of these names and
shapes, but no B: B = 1 there.

Letters: B batch, L length, H channels, N states. Arithmetic is in fp32 at least, whatever the precision around it.

[1] A. Gu, A. Gupta, K. Goel, C. Ré: On the Parameterization and Initialization of Diagonal State Space Models.
    arXiv:2206.11893
[2] A. Gu, T. Dao, S. Ermon, A. Rudra, C. Ré: HiPPO: Recurrent Memory with Optimal Polynomial Projections.
    arXiv:2008.07669
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zoo.nn.fftconv import convolve, convolve_with, spectra
from zoo.nn.precision import full_precision, wide
from zoo.nn.vandermonde import power_sums
from zoo.parts import Recipe

Start = Literal["lin", "inv", "legs"]
Rule = Literal["zoh", "bilinear"]

SSM_LR = 1e-3
"""Highest learning rate of A, B and dt, in state-spaces/s4."""
FURTHEST = 30.0
"""Where log(-Re A) is cut off, so that Re A is below zero and finite after any update."""


def starts(init: Start, state: int) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B [N/2], complex128, that a layer begins with.

    "lin" and "inv" are [1]'s S4D-Lin and S4D-Inv, with B = 1. "legs" is S4D-LegS: the eigenvalues of the normal part of
    HiPPO-LegS [2], largest imaginary part first, and its B in the basis of the eigenvectors, whose phases are chosen so
    that B is positive. As in state-spaces/s4 it is not halved, as [1] would have it; nor is it clipped, as there.

    Raises:
        ValueError: the state is odd or not positive, or `init` is none of them.
    """
    if state < 2 or state % 2:
        raise ValueError(f"state must be a positive even number, got {state}")
    n = np.arange(state // 2)
    if init == "lin":
        imaginary = math.pi * n
    elif init == "inv":
        imaginary = state / math.pi * (state / (2 * n + 1) - 1)
    elif init == "legs":
        return _legs(state)
    else:
        raise ValueError(f"init must be 'lin', 'inv' or 'legs', got {init!r}")
    return -0.5 + 1j * imaginary, np.ones(state // 2, dtype=complex)


@functools.cache
def _legs(state: int) -> tuple[np.ndarray, np.ndarray]:
    root = np.sqrt(2 * np.arange(state) + 1)
    skew = np.triu(np.outer(root, root), 1) / 2
    imaginary, vectors = np.linalg.eigh(-1j * (skew - skew.T))
    half = np.argsort(-imaginary)[: state // 2]
    return -0.5 + 1j * imaginary[half], np.abs(root @ vectors[:, half]).astype(complex)


class Ssm(nn.Module):
    """One direction: H systems of one input and one output each.

    Args:
        width: H.
        state: N.
        init: see `starts`.
        rule: how time is made discrete, "zoh" holds the input between samples, "bilinear" is Tustin's.
        dt: least and greatest step; each channel's is drawn log-uniformly.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(self, width: int, state: int, init: Start, rule: Rule, dt: tuple[float, float]) -> None:
        super().__init__()
        if rule not in ("zoh", "bilinear"):
            raise ValueError(f"rule must be 'zoh' or 'bilinear', got {rule!r}")
        if not 0 < dt[0] <= dt[1]:
            raise ValueError(f"dt must be 0 < least <= greatest, got {dt}")
        self.rule = rule
        a, b = starts(init, state)
        self.log_dt = nn.Parameter(torch.empty(width).uniform_(math.log(dt[0]), math.log(dt[1])))
        self.log_A_real = nn.Parameter(_rows(np.log(-a.real), width))
        self.A_imag = nn.Parameter(_rows(a.imag, width))
        self.B = nn.Parameter(_rows(np.stack((b.real, b.imag), -1), width))
        self.C = nn.Parameter(torch.randn(width, state // 2, 2) / math.sqrt(2))  # of variance 1, as a complex number
        self.D = nn.Parameter(torch.randn(width))

    def forward(self, length: int) -> Tensor:
        """Return the impulse response [H,L], D in its first value."""
        log_a, b = self.discrete()
        return power_sums(log_a, _pairs(self.C) * b, wide(self.D), length)

    def discrete(self) -> tuple[Tensor, Tensor]:
        """Return log a and b [H,N/2], complex, of x_k = a x_(k-1) + b u_k."""
        dt = wide(self.log_dt).exp()[:, None]
        real = -wide(self.log_A_real).clamp(-FURTHEST, FURTHEST).exp()
        a, b = torch.complex(real, wide(self.A_imag)), _pairs(self.B)
        x, y = real * dt, wide(self.A_imag) * dt
        if self.rule == "zoh":
            # exp(x + iy) - 1 without the cancellation that costs fp32 four digits where A dt is small.
            gain = torch.complex(torch.expm1(x) * y.cos() - 2 * (y / 2).sin().square(), x.exp() * y.sin())
            return torch.complex(x, y), b * gain / a
        # log((1 + z/2) / (1 - z/2)), likewise: the modulus is all but 1.
        below = (1 - x / 2).square() + (y / 2).square()
        size = torch.log1p((2 * x / below).clamp(min=torch.finfo(x.dtype).eps - 1)) / 2
        angle = torch.atan2(y / 2, 1 + x / 2) + torch.atan2(y / 2, 1 - x / 2)
        return torch.complex(size, angle), b * dt / (1 - torch.complex(x, y) / 2)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return y [B,H] and the next state of u [B,H] and a state [B,H,N/2]."""
        log_a, b = self.discrete()
        u = u.to(b.real.dtype)
        state = torch.polar(log_a.real.exp(), log_a.imag) * state + b * u[..., None]
        return 2 * (_pairs(self.C) * state).sum(-1).real + wide(self.D) * u, state


class S4D(nn.Module):
    """The bare layer: convolution with the impulse response and the skip D, without activation or mixing of channels.

    The layout is that of the linear layers around it, channels last. In eval mode and without gradient the response's
    spectrum is kept until a weight or the length changes: 2 L H real numbers, twice that in both directions.

    Args:
        width: H.
        state: N, both of each conjugate pair counted.
        bidirectional: have a second system, of its own weights, that runs backwards in time.
        init: see `starts`.
        rule: "zoh" or "bilinear", see `Ssm`.
        dt: least and greatest initial step.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, width: int, *, state: int = 64, bidirectional: bool = False, init: Start = "lin", rule: Rule = "zoh",
        dt: tuple[float, float] = (0.001, 0.1),
    ) -> None:  # fmt: skip
        super().__init__()
        self.width = width
        self.causal = Ssm(width, state, init, rule, dt)
        self.reverse = Ssm(width, state, init, rule, dt) if bidirectional else None
        self._kept = _Kept()

    def train(self, mode: bool = True) -> S4D:
        """Switch between training and evaluation; what was kept is forgotten, since engines swap weights unseen."""
        self._kept.forget()
        return super().train(mode)

    def forward(self, u: Tensor) -> Tensor:
        """Return [B,L,H] of u [B,L,H], in its precision; of both directions [B,L,2H], the causal one first.

        y[l] of the causal direction depends on u[..l], of the reverse one on u[l..]; it is what the causal one makes of
        the flipped sequence, flipped back.

        Raises:
            ValueError: u is not [B,L,H] with L at least 1.
        """
        if u.ndim != 3 or u.shape[1] == 0 or u.shape[2] != self.width:
            raise ValueError(f"S4D takes [B,L,{self.width}] with L at least 1, got {list(u.shape)}")
        with full_precision(u):
            if not self.training and not torch.is_grad_enabled():
                return convolve_with(u, self._kept.spectra(self, u.shape[1]))
            self._kept.forget()
            return convolve(u, *self._kernels(u.shape[1]))

    def _kernels(self, length: int) -> list[Tensor]:
        return [ssm(length) for ssm in (self.causal, self.reverse) if ssm is not None]

    def initial_state(self, batch: int) -> Tensor:
        """Return the state [B,H,N/2], complex, before the first step."""
        of = wide(self.causal.A_imag)
        return torch.zeros(batch, *of.shape, dtype=of.dtype.to_complex(), device=of.device)

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Return y [B,H] at one position, given u [B,H] there and the state [B,H,N/2] before it, and the state after.

        Raises:
            ValueError: the layer is bidirectional, and would need the inputs that are to come.
        """
        if self.reverse is not None:
            raise ValueError("a bidirectional S4D has no step: its reverse direction reads the inputs to come")
        with full_precision(u):
            y, state = self.causal.step(u, state)
            return y.to(u.dtype), state


class _Kept:
    """Spectra of a layer's kernels, made again when a weight has changed."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Keep nothing."""
        self._weights: list[Tensor] = []
        self._key: Any = None
        self._spectra: Tensor | None = None

    def spectra(self, layer: S4D, length: int) -> Tensor:
        """Return the layer's spectra for this length. Weights written to through `.data` are not noticed."""
        weights = [p.detach() for p in layer.parameters()]
        if any(p.is_inference() for p in weights):  # these do not tell when they are written to
            return spectra(layer._kernels(length))
        key = length, *((p.data_ptr(), p._version, p.dtype, p.device) for p in weights)
        if self._spectra is None or key != self._key:
            # Holding the weights, too, no other can come to lie at their addresses.
            self._weights, self._key, self._spectra = weights, key, spectra(layer._kernels(length))
        return self._spectra

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return _Kept, ()


def ssm_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Yield dt, A and B of every direction inside `module`: what learns slowly and has no weight decay."""
    for ssm in module.modules():
        if isinstance(ssm, Ssm):
            yield from (ssm.log_dt, ssm.log_A_real, ssm.A_imag, ssm.B)


def param_groups(module: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the optimiser's groups of a model with such layers, each trained parameter once.

    dt, A and B: no weight decay, and a learning rate of at most `SSM_LR`. Others of two dimensions or more have the
    recipe's weight decay, the rest none.
    """
    slow = {id(p) for p in ssm_parameters(module)}
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": recipe.weight_decay},
        {"params": [], "weight_decay": 0.0},
        {"params": [], "weight_decay": 0.0, "lr": min(SSM_LR, recipe.lr)},
    ]
    for p in module.parameters():
        if p.requires_grad:
            dimensions = len(getattr(p, "ds_shape", p.shape))  # as DeepSpeed notes of a partitioned one
            groups[2 if id(p) in slow else 0 if dimensions >= 2 else 1]["params"].append(p)
    return [group for group in groups if group["params"]]


def _rows(values: np.ndarray, width: int) -> Tensor:
    """Return [H,*values.shape], a copy for each channel, on the device and in the precision that is built in."""
    rows = torch.from_numpy(np.repeat(values[None], width, axis=0))
    return torch.empty(rows.shape).copy_(rows)


def _pairs(x: Tensor) -> Tensor:
    """Return [...,2] as complex numbers."""
    return torch.view_as_complex(wide(x).contiguous())

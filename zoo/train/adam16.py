"""Adam whose moments of matrices take 16 bits each: the mean in 1-6-9, the variance in 0-6-10.

As in DALL-E [1]: the parameters stay fp32 here, the variance is clipped by value to 5 before it is used, for the
parameters or as a moment, and parameters that are fp32 in [1] (embeddings, unembeddings, gains, biases: all but the
matrices of residual blocks) keep fp32 moments, which torch's own kernel updates.

Rounding. [1] does not say how moments are rounded. To nearest, a variance with 10 bits of significand moves only where
an update changes it by more than half a step, a share of 2^-12 to 2^-11 of it. With the decay of [1], 0.96, all is
well; with 0.999 a variance without gradients falls by a whole step or two where it should fall by 1.02 to 2.05, and
with 0.9999 it does not fall at all. So moments are rounded at random, to the lower or the upper neighbour, so that
what is kept is right in the mean whatever the decay. Its price is noise. Variances beside exact ones, mean and
(deviation), of gradients of one size, and when these have become a thousandth for 1 / (1 - decay) updates:

    decay     at random, steady   fallen            to nearest, steady   fallen
    0.96      1.000 (0.001)       1.000 (0.002)     1.000 (0.001)        1.000 (0.002)
    0.999     1.000 (0.006)       1.000 (0.011)     0.992 (0.008)        1.086 (0.017)
    0.9999    1.000 (0.010)       1.000 (0.027)     1.024 (0.007)        2.784 (0.020)

The random bits are `zoo.rng`'s: they depend on the update, on the place of the parameter in the optimiser and on the
place of the value in the parameter, so that a resumed run rounds as one that was not stopped, and processes that hold
the same parameter hold the same moments. They lie in a table in which every number is equally often; a parameter
reads it from another place in every update. The run's seed has no part in it.

Memory. The two codes of a value lie in one word of 32 bits, of which the state's "exp_avg" and "exp_avg_sq" are int16
views. A parameter is worked on in chunks, so there are scratch buffers of a chunk besides.

Time. torch's fused kernel makes one pass over the values and `_plain` makes 25, each a kernel of torch's: on one CPU
thread a step takes 5 times as long as with fp32 moments, and a whole update of 256 tokens 1.13 times, less of more
(zoo.bench.moments). `_one_pass`, compiled by torch.compile, takes 1.3 and 1.01 times as long; it is asked for with the
recipe's `moments_kernel`, as it needs a C++ compiler, on a GPU Triton. The two differ in the last bit before they
round, so that one value in some thousand is rounded the other way.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, appendix D
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.nn.residual import residuals
from zoo.nn.small_floats import ONE_SIX_NINE, ZERO_SIX_TEN
from zoo.rng import Rng

MEAN, VARIANCE = ONE_SIX_NINE, ZERO_SIX_TEN
CLIP = 5.0
"""Largest variance [1]."""

# Where an fp32 number times `scale` has the bits of its code, and how they come out of a word, the mean's code above
# the variance's. A shift to the right repeats the sign, which the mask takes from where the exponent has no bits.
_MEAN_BITS, _VARIANCE_BITS = -0x60004000, 0x1FFFE000  # sign, and bits 14 to 28; bits 13 to 28
_MEAN_HALF, _SIGN = 0x7FFF0000, -0x80000000
_MEAN_MOST, _VARIANCE_MOST = MEAN.largest * MEAN.scale, CLIP * VARIANCE.scale

_DITHER = 13
"""Random bits that decide a rounding; the mean's last kept bit stands for 14, of which the lowest is 0."""
_ROWS = 4
"""The table of random numbers has every number in every fourth place: places are multiples of it, and so aligned."""
_PERIOD = _ROWS << _DITHER
"""Length of the table; chunks are a multiple of it."""


class _Scratch:
    """Buffers of one device: three of fp32 [size], and the mean's and the variance's random numbers.

    These are int32 [2, size + period]; for a compiled kernel [1, size + period], with the variance's 16 bits higher.
    """

    def __init__(self, size: int, device: torch.device, *, compiled: bool) -> None:
        self.size = size
        self.buffers = torch.empty(0 if compiled else 3, size, dtype=torch.float32, device=device)
        rng = Rng(0, range(_ROWS))
        both = [rng.uniform(1 << _DITHER, device=device).argsort(stable=True, dim=1).T.flatten() for _ in range(2)]
        table = (both[0] | both[1] << 16)[None] if compiled else torch.stack(both)
        self.dither = table.int().repeat(1, -(-size // _PERIOD) + 1)[:, : size + _PERIOD]


class _Moments16(torch.optim.Adam):
    """Groups with "packed" have moments of 16 bits, the others torch's own.

    Args:
        compiled: make one kernel of a step.
        arguments: torch's.

    Raises:
        ConfigError: `compiled`, and there is nothing to compile with.
    """

    decoupled = False

    def __init__(self, *arguments: Any, compiled: bool = False, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._compiled = compiled
        self._scratches: dict[torch.device, _Scratch] = {}
        for device in {p.device for group in self.param_groups if group["packed"] for p in group["params"]}:
            if compiled and device.type != "meta":
                _try(device)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Make an update; `closure` as for any optimiser."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["packed"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        places: dict[int, list[int]] = {}
        packed = [(p, group) for group in groups if group["packed"] for p in group["params"]]
        for i, (p, group) in enumerate(packed):
            if p.grad is None:
                continue
            if not self.state[p]:
                self.state[p] = fresh(p, packed=True)
            self.state[p]["step"] += 1
            updates = int(self.state[p]["step"])
            if updates not in places:
                drawn = Rng(0, range(len(packed)), step=updates).integers(1 << _DITHER)
                places[updates] = drawn.mul_(_ROWS).tolist()
            self._update(p, group, updates, places[updates][i])
        return loss

    def _update(self, p: Tensor, group: dict[str, Any], updates: int, place: int) -> None:
        scratch = self._scratch(p)
        numbers = _numbers(group, updates, decoupled=self.decoupled)
        step: Callable[..., None]
        if self._compiled:
            step = functools.partial(_one_kernel(), numbers=torch.tensor(numbers, device=p.device))
        else:
            step = functools.partial(_plain, numbers=numbers, buffers=scratch.buffers)
        flat, grad = p.detach().contiguous().view(-1), p.grad.contiguous().view(-1)  # type: ignore[union-attr]
        pieces = (x.split(scratch.size) for x in (flat, grad, _words(self.state[p])))
        for x, g, words in zip(*pieces, strict=True):
            step(x, g, words, scratch.dither[:, place : place + len(x)])
        if not p.is_contiguous():
            p.copy_(flat.view(p.shape))

    def _scratch(self, p: Tensor) -> _Scratch:
        """Return the buffers of a parameter's device, as long as a chunk, or as a parameter that is shorter."""
        # What a core's cache holds, or what keeps a GPU busy; a kernel that makes one pass needs no cache.
        chunk = 1 << (22 if p.device.type != "cpu" else 20 if self._compiled else 16)
        size, held = min(chunk, p.numel()), self._scratches
        if p.device not in held or held[p.device].size < size:
            held[p.device] = _Scratch(size, p.device, compiled=self._compiled)
        return held[p.device]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state. torch gives all of it the parameters' type on the way, which holds every code."""
        super().load_state_dict(state_dict)
        for p in (p for group in self.param_groups if group["packed"] for p in group["params"] if p in self.state):
            loaded, made = self.state[p], fresh(p, packed=True)
            for name, x in made.items():
                x.copy_(loaded[name])
            self.state[p] = made


class Adam16(_Moments16):
    """`torch.optim.Adam`; groups have a field "packed"."""


class AdamW16(_Moments16, torch.optim.AdamW):
    """`torch.optim.AdamW`; groups have a field "packed"."""

    decoupled = True


def _numbers(group: dict[str, Any], updates: int, *, decoupled: bool) -> list[float]:
    """Return the numbers of one update: keep, gain, fall, rise, shrink, pull, eps and length, see `_plain`.

    Moments come times `scale`. With v = V / scale_v and r = 1 / root(scale_v * (1 - b2^t)) the denominator
    root(v / (1 - b2^t)) + eps is r * (root(V) + eps / r), and r goes into the step's length.
    """
    keep, fall = group["betas"]
    decay = group["weight_decay"]
    root = 1 / math.sqrt(VARIANCE.scale * (1 - fall**updates))
    return [
        keep, (1 - keep) * MEAN.scale, fall, (1 - fall) * VARIANCE.scale,
        1 - group["lr"] * decay if decoupled else 1.0, 0.0 if decoupled else decay,
        group["eps"] / root, -group["lr"] / ((1 - keep**updates) * MEAN.scale * root),
    ]  # fmt: skip


def _plain(x: Tensor, g: Tensor, words: Tensor, dither: Tensor, numbers: list[float], buffers: Tensor) -> None:
    """Update parameters and moments, by kernels of torch's.

    Args:
        x: fp32 [n], parameters; changed.
        g: fp32 [n], gradients.
        words: int32 [n], codes of the moments; changed.
        dither: int32 [2, n], random numbers of 13 bits for the mean and the variance.
        numbers: of `_numbers`.
        buffers: fp32 [3, n or more], destroyed.
    """
    keep, gain, fall, rise, shrink, pull, eps, length = numbers
    m, v, spare = (buffer[: len(x)] for buffer in buffers)
    m_bits, v_bits, spare_bits = (buffer.view(torch.int32) for buffer in (m, v, spare))
    if pull:
        g = torch.add(g, x, alpha=pull, out=spare)
    torch.bitwise_right_shift(words, _0D[2], out=m_bits).bitwise_and_(_0D[_MEAN_BITS])
    torch.bitwise_left_shift(words, _0D[13], out=v_bits).bitwise_and_(_0D[_VARIANCE_BITS])
    m.mul_(keep).add_(g, alpha=gain)
    v.mul_(fall).addcmul_(g, g, value=rise).clamp_(max=_VARIANCE_MOST)
    if shrink != 1.0:
        x.mul_(shrink)
    x.addcdiv_(m, torch.sqrt(v, out=spare).add_(eps), value=length)
    m.clamp_(-_MEAN_MOST, _MEAN_MOST)
    m_bits.add_(dither[0], alpha=2)
    v_bits.add_(dither[1]).bitwise_right_shift_(_0D[13])
    torch.bitwise_and(m_bits, _0D[_SIGN], out=spare_bits)
    m_bits.bitwise_left_shift_(_0D[2]).bitwise_and_(_0D[_MEAN_HALF]).bitwise_or_(v_bits)
    torch.bitwise_or(m_bits, spare_bits, out=words)


def _one_pass(x: Tensor, g: Tensor, words: Tensor, dither: Tensor, numbers: Tensor) -> None:
    """Do what `_plain` does, written for a compiler to make one kernel of.

    Args:
        x, g, words: as there.
        dither: int32 [1, n], random numbers of 13 bits: the lower half for the mean, the upper for the variance.
        numbers: fp32 [8].
    """
    keep, gain, fall, rise, shrink, pull, eps, length = numbers.unbind()
    g = g + x * pull
    m = ((words >> 2) & _MEAN_BITS).view(torch.float32) * keep + g * gain
    v = ((words << 13) & _VARIANCE_BITS).view(torch.float32) * fall + g * g * rise
    v = v.clamp(max=_VARIANCE_MOST)
    x.copy_(x * shrink + m / (v.sqrt() + eps) * length)
    m_bits = m.clamp(-_MEAN_MOST, _MEAN_MOST).view(torch.int32) + 2 * (dither[0] & 0xFFFF)
    v_bits = v.view(torch.int32) + (dither[0] >> 16)
    words.copy_((m_bits & _SIGN) | ((m_bits << 2) & _MEAN_HALF) | (v_bits >> 13))


@functools.cache
def _one_kernel() -> Callable[..., None]:
    return torch.compile(_one_pass, dynamic=True)


def _try(device: torch.device) -> None:
    """Compile the kernel and run it once.

    Raises:
        ConfigError: that failed.
    """
    x, words = torch.zeros(2, 64, device=device), torch.zeros(2, 64, dtype=torch.int32, device=device)
    try:
        with torch.no_grad():
            _one_kernel()(*x, words[0], words[1:], numbers=torch.ones(8, device=device))
    except Exception as error:  # torch.compile has no one class for what it lacks
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(
            "moments_kernel = 'compiled' needs a C++ compiler, or Triton on a GPU, and torch.compile failed "
            f"({reason}); take moments_kernel=plain"
        ) from error


# torch takes three times as long to wrap a Python number as to read a tensor of no axis.
_0D = {
    value: torch.tensor(value, dtype=torch.int32, device="cpu")
    for value in (2, 13, _MEAN_BITS, _VARIANCE_BITS, _MEAN_HALF, _SIGN)
}


def fresh(p: Tensor, *, packed: bool, updates: int = 0) -> dict[str, Tensor]:
    """Return a parameter's state with moments of zero, as after so many updates."""
    if packed:
        words = torch.zeros(p.shape, dtype=torch.int32, device=p.device)
        variance, mean = (
            words.view(torch.int16).unflatten(-1, (p.shape[-1], 2)).unbind(-1)
        )  # the lower half comes first
        return {"step": torch.tensor(float(updates), device="cpu"), "exp_avg": mean, "exp_avg_sq": variance}
    moments = {kind: torch.zeros_like(p.data) for kind in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.tensor(float(updates), device=p.device), **moments}


def _words(state: dict[str, Tensor]) -> Tensor:
    """Return the words, int32 [values], of which a state's moments are the halves."""
    mean = state["exp_avg"]
    return torch.empty(0, dtype=torch.int32, device=mean.device).set_(mean.untyped_storage(), 0, (mean.numel(),))  # type: ignore[call-overload]


def split(groups: Iterable[dict[str, Any]], stage: nn.Module) -> list[dict[str, Any]]:
    """Return parameter groups with the field "packed": true for the matrices of residual branches.

    In a stage without residual branches all that has two dimensions or more counts, as for `zoo.cost.Cost.is_matrix`.
    """
    inside = {id(p) for _, block in residuals(stage) for p in block.branch.parameters()}
    made = []
    for group in groups:
        for packed in (True, False):
            params = [p for p in group["params"] if packed == _is_matrix(p, inside)]
            made.append({**group, "params": params, "packed": packed})
    return [group for group in made if group["params"]]


def _is_matrix(p: Any, inside: set[int]) -> bool:
    shape = getattr(p, "ds_shape", p.shape)  # DeepSpeed notes that of a partitioned parameter
    return len(shape) >= 2 and (id(p) in inside or not inside)

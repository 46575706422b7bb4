"""Drawing codes from logits: temperature, top-k, top-p, guidance and prefixes, for every autoregressive prior.

A draw is an inverse of the cumulative distribution at one uniform number a row, so that row i of a sample depends on
its own random stream only. The distribution is walked in index order, never in sorted order: two logits that trade
places by a rounding error then move a boundary by a rounding error, instead of exchanging two codes.

Letters: B batch, K codes, N codes of one picture.

[1] A. Holtzman et al.: The curious case of neural text degeneration. arXiv:1904.09751 (top-p).
[2] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from zoo.errors import ConfigError

_heard: ContextVar[Callable[[int], None] | None] = ContextVar("heard", default=None)


@contextmanager
def hearing(heard: Callable[[int], None]) -> Iterator[None]:
    """Call `heard(codes)` inside the block whenever a prior has drawn codes, one in every row it draws at once.

    Every prior that uses `draw` is heard, without an argument for it in `sample`.
    """
    before = _heard.set(heard)
    try:
        yield
    finally:
        _heard.reset(before)


def check_sampling(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> None:
    """Refuse settings outside their range.

    Raises:
        ConfigError: temperature < 0, top_k < 1, or top_p outside (0, 1].
    """
    if not 0 <= temperature < float("inf"):
        raise ConfigError(f"temperature: must be at least 0, not {temperature}")
    if top_k is not None and top_k < 1:
        raise ConfigError(f"top_k: must be at least 1, not {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ConfigError(f"top_p: must be in (0, 1], not {top_p}")


def check_guidance(guidance: float, cond_drop: float) -> None:
    """Refuse guidance of a prior that never learned its null condition.

    Raises:
        ConfigError: `guidance` is not 1 and `cond_drop` is 0.
    """
    if guidance != 1 and cond_drop == 0:
        raise ConfigError(f"guidance: {guidance} needs a prior trained with cond_drop > 0; this one has cond_drop = 0")


def guide(logits: Tensor, guidance: float) -> Tensor:
    """Return null + guidance * (cond - null) of logits [2B,...], conditioned rows first. [2] eq. (6)"""
    cond, null = logits.float().chunk(2)
    return torch.lerp(null, cond, guidance)


def draw(
    logits: Tensor, u: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """Return one code a row, [B] int64.

    Args:
        logits: [B,K], any float type; -inf excludes a code.
        u: [B] uniform numbers in (0, 1).
        temperature: divides the logits; 0 takes the most probable code (the first of equals).
        top_k: keep the k most probable codes.
        top_p: then keep the fewest most probable codes that hold this much probability. [1]

    Raises:
        ConfigError: a setting is out of range.
    """
    check_sampling(temperature, top_k, top_p)
    if (heard := _heard.get()) is not None:
        heard(len(logits))
    logits = logits.float()
    if temperature == 0:
        return logits.argmax(-1)
    if temperature != 1:
        logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        kept = logits.topk(top_k).indices
        logits = torch.full_like(logits, float("-inf")).scatter(-1, kept, logits.gather(-1, kept))
    p = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        sorted_p, order = p.sort(dim=-1, descending=True, stable=True)
        before = sorted_p.cumsum(-1) - sorted_p
        p = torch.zeros_like(p).scatter(-1, order, sorted_p.masked_fill(before >= top_p, 0.0))
    # Summed in double, u * total < total holds strictly, so a code of zero probability is never drawn.
    cdf = p.cumsum(-1, dtype=torch.float64)
    target = u.to(cdf).unsqueeze(-1) * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True).squeeze(-1).clamp_(max=logits.shape[-1] - 1)


def check_prefix(prefix: Tensor, batch: int, length: int, vocab_size: int) -> int:
    """Return how many leading columns of `prefix` [B,N] are given in every row.

    A row holds codes in [0, K) first and -1 from its first free place on; rows may differ in how many they give.

    Raises:
        ConfigError: wrong shape, a code out of range, or a given code after a free place.
    """
    if tuple(prefix.shape) != (batch, length):
        raise ConfigError(f"prefix: must have shape {[batch, length]}, not {list(prefix.shape)}")
    if bool(((prefix < -1) | (prefix >= vocab_size)).any()):
        raise ConfigError(f"prefix: codes must lie in [0, {vocab_size}), or be -1 where free")
    given = prefix >= 0
    if bool((given[:, 1:] & ~given[:, :-1]).any()):
        raise ConfigError("prefix: a causal prior takes leading codes only; a given code follows a free place")
    return int(given.sum(1).min()) if batch else 0

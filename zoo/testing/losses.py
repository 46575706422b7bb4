"""Checks of a trainable part's loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zoo.interfaces import Losses
from zoo.nn.residual import outer_residuals
from zoo.testing.kit import ROWS, Case, close, global_random_state_kept, need

_FACTOR = 2.0**3
"""Between the two gradient scales that are compared: at 4 to 32 times the loss, gradients lie well inside fp16."""


def _trainable(check: Callable[[Case, Any], None]) -> Callable[[Case], None]:
    """Run a check on a fresh part in training mode, if it has a loss."""

    def run(case: Case) -> None:
        system = case.fresh().train()
        part = case.of(system)
        if hasattr(part, "loss"):
            check(case, part)

    run.__name__, run.__doc__ = check.__name__, check.__doc__
    return run


def _loss(case: Case, part: Any, rows: slice = slice(None), step: int = 3) -> Losses:
    batch, cond, rng = case.batch(part)[rows], case.cond()[rows], case.rng(step=step)[rows]
    return part.loss(batch, cond, step=step, rng=rng)


@_trainable
def loss_is_a_finite_scalar(case: Case, part: Any) -> None:
    """ "loss" and every other entry are finite scalars; the others carry no gradient."""
    losses = _loss(case, part)
    need("loss" in losses, "loss() returns no 'loss'")
    for name, x in losses.items():
        need(isinstance(x, Tensor) and x.ndim == 0, f"'{name}' is no scalar tensor")
        need(torch.isfinite(x), f"'{name}' is {float(x.detach())}")
        need(name == "loss" or not x.requires_grad, f"'{name}' carries a gradient; detach it")


@_trainable
def loss_has_a_gradient(case: Case, part: Any) -> None:
    """The loss moves the part's parameters, and every gradient is finite."""
    _loss(case, part)["loss"].backward()
    grads = [(name, p.grad) for name, p in part.named_parameters() if p.grad is not None]
    need(any(g.abs().max() > 0 for _, g in grads), "the loss has no gradient")
    for name, g in grads:
        need(g.isfinite().all(), f"the gradient of '{name}' is not finite")


@_trainable
def loss_draws_from_its_rng_alone(case: Case, part: Any) -> None:
    """The loss leaves the global generators alone, and one `rng` gives one loss."""
    twin = copy.deepcopy(part)
    with global_random_state_kept("loss"):
        first = _loss(case, part)["loss"]
    torch.manual_seed(int(torch.randint(1 << 30, ())))
    need(torch.equal(first, _loss(case, twin)["loss"]), "the same seed, step and rows give another loss")


@_trainable
def loss_is_a_mean_over_samples(case: Case, part: Any) -> None:
    """Two halves of a batch average to the whole: the noise of a row depends on that row alone."""
    if getattr(part, "whole_batch", False):
        return
    with torch.no_grad():
        _loss(case, part, step=0)  # what a first batch initialises is not under test
        whole = _loss(case, copy.deepcopy(part))["loss"]
        half = ROWS // 2
        first = _loss(case, copy.deepcopy(part), slice(0, half))["loss"]
        second = _loss(case, copy.deepcopy(part), slice(half, ROWS))["loss"]
    close(whole, (first + second) / 2, "a batch's loss is not the mean of its halves' (set `whole_batch` if meant)")


@_trainable
def loss_is_finite_in_bfloat16(case: Case, part: Any) -> None:
    """Under bfloat16 autocast the loss is finite and float32."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = _loss(case, part)["loss"]
    need(torch.isfinite(loss), f"under bfloat16 autocast the loss is {float(loss.detach())}")
    need(loss.dtype == torch.float32, f"under bfloat16 autocast the loss is {loss.dtype}; compute it in float32")


@_trainable
def loss_trains_with_scaled_branches(case: Case, part: Any) -> None:
    """With its residual branches in fp16 under gradient scales, their parameters' gradients carry them, no others do.

    (They do not where a parameter of a branch is used outside of it, or a tensor with a gradient reaches a branch
    past its arguments, in a container or closure.)
    """
    if not isinstance(part, nn.Module) or not any(outer_residuals(part)):
        return
    inside = {id(p) for _, block in outer_residuals(part) for p in block.branch.parameters()}
    carry = {name for name, p in part.named_parameters() if id(p) in inside}
    # Both scales are compared in fp16: it moves a loss a little, and one that chooses (a codebook) may choose otherwise
    # in a near tie. The plain gradients only tell whether fp16 has lost any.
    plain, small, large = (_norms(case, part, scale) for scale in (None, 1.0, _FACTOR))
    for name in (name for name, x in plain.items() if x > 1e-3 * max(plain.values())):
        held = small[name] / plain[name]
        need(1 / 8 < held < 8, f"with residual branches in fp16 the gradient of '{name}' is {held:.3g} times the plain "
             "one: does fp16 hold what they compute?")  # fmt: skip
        ratio, right = large[name] / small[name], _FACTOR if name in carry else 1.0
        need(0.9 < ratio / right < 1.1, f"with scaled residual branches the gradient of '{name}' is {ratio:.3g} "
             f"times the one at scale 1, not {right:g}: is it used outside of its branch?")  # fmt: skip


def _norms(case: Case, part: nn.Module, scale: float | None) -> dict[str, float]:
    """Return the norm of each parameter's gradient, with branches in fp16 where there is a scale.

    The loss counts four times: at a scale of 1 alone, small gradients would lie where fp16 has few digits.
    """
    twin = copy.deepcopy(part)
    for _, block in outer_residuals(twin):
        block.grad_scale = None if scale is None else torch.tensor(scale)
    (4 * _loss(case, twin, slice(0, ROWS // 2))["loss"]).backward()  # fp16 is slow on most CPUs
    return {name: float(p.grad.norm()) for name, p in twin.named_parameters() if p.grad is not None}


CHECKS = [
    loss_is_a_finite_scalar,
    loss_has_a_gradient,
    loss_draws_from_its_rng_alone,
    loss_is_a_mean_over_samples,
    loss_is_finite_in_bfloat16,
    loss_trains_with_scaled_branches,
]

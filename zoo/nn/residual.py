"""The one place where residual sums are made, so that checkpointing and per-block gradient scaling act here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from zoo.nn.scaled import scaled


class Residual(nn.Module):
    """`(x, *extra) -> skip(x) + gain * branch(x, *extra)`.

    Args:
        branch: the residual branch; its parameters belong to this branch alone.
        gain: constant in front of the branch.
        skip: what the identity path applies, where the branch changes the width; None: nothing.
    """

    def __init__(self, branch: nn.Module, gain: float = 1.0, skip: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = branch
        self.skip = skip
        self.gain = gain
        self.checkpointed = False
        self.grad_scale: Tensor | None = None
        """Gradient scale with which training runs the branch in fp16, see `zoo.nn.scaled`; None: it runs as it is."""

    def forward(self, x: Tensor, *extra: Any) -> Tensor:
        identity = x if self.skip is None else self.skip(x)
        if self.grad_scale is not None and self.training:
            y = scaled(self._run, self.grad_scale, x, *extra)
        else:
            y = self._run(x, *extra)
        return identity + (y if self.gain == 1.0 else self.gain * y)

    def _run(self, x: Tensor, *extra: Any) -> Tensor:
        if self.checkpointed and self.training:
            # No part uses torch's global random state, so there is none to restore.
            return checkpoint(self.branch, x, *extra, use_reentrant=False, preserve_rng_state=False)
        return self.branch(x, *extra)


def residuals(module: nn.Module) -> Iterator[tuple[str, Residual]]:
    """Yield (name, block) of every residual sum inside `module`, in order of construction."""
    for name, child in module.named_modules():
        if isinstance(child, Residual):
            yield name, child


def outer_residuals(module: nn.Module) -> Iterator[tuple[str, Residual]]:
    """Yield (name, block) of every residual sum that is not part of another's branch, in order of construction."""
    branch = None
    for name, block in residuals(module):
        if branch is None or not f"{name}.".startswith(f"{branch}."):
            branch = f"{name}.branch".lstrip(".")
            yield name, block


def checkpoint_branches(module: nn.Module, on: bool = True) -> None:
    """Recompute every residual branch of `module` in its backward pass, instead of keeping its activations."""
    for _, block in residuals(module):
        block.checkpointed = on

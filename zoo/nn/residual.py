"""The one place where residual sums are made, so that checkpointing and per-block gradient scaling act here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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

    def forward(self, x: Tensor, *extra: Any) -> Tensor:
        identity = x if self.skip is None else self.skip(x)
        if self.checkpointed and self.training:
            # No part uses torch's global random state, so there is none to restore.
            y = checkpoint(self.branch, x, *extra, use_reentrant=False, preserve_rng_state=False)
        else:
            y = self.branch(x, *extra)
        return identity + (y if self.gain == 1.0 else self.gain * y)


def residuals(module: nn.Module) -> Iterator[tuple[str, Residual]]:
    """Yield (name, block) of every residual sum inside `module`, in order of construction."""
    for name, child in module.named_modules():
        if isinstance(child, Residual):
            yield name, child


def checkpoint_branches(module: nn.Module, on: bool = True) -> None:
    """Recompute every residual branch of `module` in its backward pass, instead of keeping its activations."""
    for _, block in residuals(module):
        block.checkpointed = on

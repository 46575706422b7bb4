"""What a reducer remembers beside its error feedback: steps, bytes sent, its seed, and a state that is being loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadRun
from zoo.interfaces import Grad
from zoo_powersgd.exchange import Exchange


class Ledger:
    """Counters, and the tensors of a loaded state until the gradients they belong to are met.

    Args:
        seed: decides the first Q of every matrix.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.steps = 0
        """Reductions so far."""
        self.sent = {"matrices": 0, "rest": 0}
        """Payload so far, in bytes: factors; everything else."""
        self._loaded: dict[str, Tensor] = {}
        self._added: dict[str, Tensor] = {}
        """Loaded errors that are in gradients of a reduction whose update may still be skipped."""

    def count(self, exchange: Exchange, rest: int) -> None:
        """Take note of a reduction that has sent `rest` bytes beside its factors."""
        self.steps += 1
        self.sent["rest"] += rest
        self.sent["matrices"] += exchange.sent - rest

    def state(self) -> dict[str, Tensor]:
        """Return the counters, and what was loaded and not yet met, as tensors."""
        counters = {"steps": self.steps, "seed": self.seed, **{f"sent/{k}": n for k, n in self.sent.items()}}
        return {**{name: torch.tensor(n) for name, n in counters.items()}, **self._loaded}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, and keep the rest until it is asked for."""
        rest = dict(state)
        self.steps, self.seed = int(rest.pop("steps")), int(rest.pop("seed"))
        self.sent = {kind: int(rest.pop(f"sent/{kind}")) for kind in self.sent}
        self._loaded = rest

    def error(self, name: str, like: Tensor) -> Tensor | None:
        """Return, once, the loaded gradient that is not yet applied, in the shape and type of `like`, or None.

        Raises:
            BadRun: it has another number of values.
        """
        found = self._loaded.pop(f"error/{name}", None)
        if found is None:
            return None
        if found.numel() != like.numel():
            raise BadRun(
                f"reducer state of '{name}' has {found.numel()} values and its gradient {like.numel()}: "
                "it was saved for a model or shards of another size"
            )
        return found.to(like).view(like.shape)

    def factor(self, name: str, like: Tensor, shape: tuple[int, ...]) -> Tensor | None:
        """Return the loaded Q of a matrix if it has this shape; another is of no use here and forgotten."""
        found = self._loaded.pop(f"q/{name}", None)
        return found.to(like) if found is not None and found.shape == shape else None

    def add_errors(self, grads: list[Grad]) -> None:
        """Add what was not yet applied to gradients that are sent whole here and were compressed where it was saved;
        `settle` when it is known whether the update is made."""
        for grad in grads:
            error = self.error(grad.name, grad.tensor)
            if error is not None:
                grad.tensor.add_(error)
                self._added[f"error/{grad.name}"] = error

    @property
    def unsettled(self) -> bool:
        """Whether errors were added that a skipped update must not lose."""
        return bool(self._added)

    def settle(self, applied: bool) -> None:
        """Forget the errors that were added, or keep them where the update is skipped."""
        if not applied:
            self._loaded |= self._added
        self._added = {}

    def check_met(self) -> None:
        """Raise BadRun when a gradient of the loaded state did not come."""
        left = sorted(name for name in self._loaded if name.startswith("error/"))
        if left:
            raise BadRun(
                f"reducer state of '{left[0].removeprefix('error/')}' belongs to no gradient here "
                f"({len(left)} such): it was saved for another model"
            )

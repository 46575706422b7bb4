"""The end of an update, the same for every engine.

Unscale, and note what is not finite (`zoo.train.resblock`) -> mean between the copies of the model -> one norm and one
flag over all processes (`zoo.train.reduction`) -> decompress, clip, update; or skip, on every process alike, and say
which block it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor, nn

from zoo.interfaces import Grad, Reducer
from zoo.train import reduction
from zoo.train.copies import Copies
from zoo.train.resblock import Scales

log = logging.getLogger("zoo.train")


class LossScale(Protocol):
    """The factor before a loss."""

    @property
    def value(self) -> float:
        """The scale."""

    def move(self, finite: bool, *, loss: bool) -> dict[str, float]:
        """Take in an update; return the scale it had, and "settling" where a lower one will end the skips."""


@attrs.define(kw_only=True, eq=False)
class Ending:
    """What the updates of one stage end with. Made anew for each stage: a reducer remembers gradients."""

    world: Any
    copies: Copies
    reducer: Reducer
    clip: float | None
    """Largest norm of the whole gradient."""
    scales: Scales | None = None
    """Of the residual branches, in resblock precision."""
    loss_scale: LossScale | None = None

    def end(
        self, grads: list[Grad], finite_loss: Tensor, *, alike: bool, update: Callable[[], None],
        skip: Callable[[], None],
    ) -> dict[str, float]:  # fmt: skip
        """Reduce, clip and `update`, or `skip` on every process when a loss or a gradient is not finite on any.

        Args:
            grads: what this process holds of its copy's mean gradient, scaled; changed in place.
            finite_loss: scalar bool, this process's losses were finite.
            alike: the processes of a copy all hold the whole gradient.
            update: makes the update of the gradients as they are then.
            skip: leaves everything as it was.

        Returns:
            "grad_norm" (of the whole gradient, before clipping), "skipped" (1.0 or 0.0); of several copies "sent", the
            bytes this process put into the reduction; the scales; "settling", 1.0 where a skip is an overflow that a
            falling scale will end.
        """
        bad = self._unscale(grads)
        found = reduction.reduce(self.reducer, grads, self.copies, finite_loss, alike=alike)
        made = {"grad_norm": found.norm, "skipped": 0.0 if found.finite else 1.0}
        if self.copies.count > 1:
            made["sent"] = float(found.sent)
        if self.scales is not None and bad is not None:
            made |= self.scales.move(bad, made=found.finite, loss=found.loss)
        if self.loss_scale is not None:
            made |= self.loss_scale.move(found.finite, loss=found.loss)
        if not found.finite and "settling" not in made:
            self._blame(grads)
        found.decompress(found.finite)
        if found.finite:
            reduction.clip([grad.tensor for grad in grads], found.norm, self.clip)
            update()
        else:
            skip()
        return made

    def _unscale(self, grads: list[Grad]) -> Tensor | None:
        """Divide the gradients by what they were scaled with; return which blocks overflowed, on any process."""
        if self.loss_scale is not None and grads:
            torch._foreach_div_([grad.tensor for grad in grads], self.loss_scale.value)
        return None if self.scales is None else reduction.any_process(self.scales.unscale(grads), self.world)

    def _blame(self, grads: list[Grad]) -> None:
        where = reduction.blame(grads, self.world)
        if where:
            log.warning("gradient is not finite in %s", where)


class Buffers:
    """The buffers of a stage that are part of its weights' file (running statistics), as an update finds them."""

    def __init__(self, stage: nn.Module) -> None:
        self._stage = stage
        self._before: dict[str, Tensor] | None = None

    def keep(self) -> None:
        """Remember them, unless they are remembered."""
        if self._before is None:
            self._before = {name: x.clone() for name, x in self._now()}

    def put_back(self) -> None:
        """Undo what the update's forward passes did to them."""
        for name, x in self._now():
            x.copy_((self._before or {}).get(name, x))

    def forget(self) -> None:
        """Let the next `keep` remember them as they are then."""
        self._before = None

    def _now(self) -> Iterator[tuple[str, Tensor]]:
        saved = self._stage.state_dict(keep_vars=True)
        yield from ((name, x) for name, x in saved.items() if not isinstance(x, nn.Parameter))

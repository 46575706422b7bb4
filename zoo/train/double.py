"""The built-in engine in double precision, in which rounding is a billionth of what it is in single.

It is for checks, several times as slow and twice as large. A model that makes much of a rounding (a dVAE's losses part
within tens of updates when a sum is made in another order) trains alike here in every layout, or the layout is wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from zoo.errors import ConfigError
from zoo.interfaces import Batch, Losses
from zoo.parts import Recipe
from zoo.rng import Rng
from zoo.train.engine import TorchEngine
from zoo.train.stage import Stage
from zoo.weights import Lazy


class DoubleEngine:
    """`TorchEngine` with the trained part's weights, gradients and moments, and batches, in fp64.

    Frozen parts compute in fp32, finished parts are written and losses recorded in fp32, as all are. What memory a
    training needs is foretold as if it were in fp32, about half.

    Args:
        options: those of `TorchEngine`.
        device: where to train; see there.

    Raises:
        ConfigError: another precision is asked for, or what `TorchEngine` refuses.
    """

    def __init__(self, options: Any, *, device: str | torch.device | None = None) -> None:
        if options.precision != "fp32":
            raise ConfigError(
                f"--precision {options.precision}: engine 'double' computes in fp64; leave one of them out"
            )
        self._engine = TorchEngine(options, device=device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def prepare(self, stage: Stage, recipe: Recipe, *, steps: int) -> None:
        """Take the stage, whose weights become fp64.

        Raises:
            ConfigError: the recipe keeps moments in 16 bits, or what `TorchEngine.prepare` refuses.
        """
        if recipe.moments != "fp32":
            raise ConfigError(f"train.moments = {recipe.moments}: engine 'double' keeps them in fp64; take fp32")
        self._engine.prepare(stage.double(), recipe, steps=steps)

    def __call__(self, batch: Batch, step: int, rng: Rng) -> Losses:
        """Return the losses of one micro-batch of update `step`."""
        values = batch.filled().items()
        wide: dict[str, Any] = {k: x.double() for k, x in values if isinstance(x, Tensor) and x.is_floating_point()}
        return self._engine(attrs.evolve(batch, **wide), step, rng)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Return a context in which the trained parts hold the averaged weights, in fp32, to draw pictures with."""
        with self._engine.averaged():
            stage = self._engine.stage
            held = [(x, x.data) for x in (*stage.parameters(), *stage.buffers()) if x.dtype == torch.float64]
            for x, wide in held:
                x.data = wide.float()
            try:
                yield
            finally:
                for x, wide in held:
                    x.data = wide

    def weights(self) -> dict[str, Lazy]:
        """Return the tensors to be kept, in fp32."""
        return {name: _narrow(lazy) for name, lazy in self._engine.weights().items()}


def _narrow(lazy: Lazy) -> Lazy:
    if lazy.dtype != torch.float64:
        return lazy
    return Lazy(lazy.shape, torch.float32, functools.partial(_fetched, lazy))


def _fetched(lazy: Lazy) -> Tensor:
    return lazy.fetch().float()

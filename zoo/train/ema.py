"""A moving average of the weights, which is what is saved at the end and sampled from on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor


class Ema:
    """average <- decay * average + (1 - decay) * weights, in fp32, every `every` updates.

    It starts at the initial weights and has no bias correction: the papers that use one state none. Buffers are not
    averaged: what is saved beside the averaged weights are the buffers as they are.

    Args:
        weights: what is averaged, by name; may be replaced before an update, under the same names.
        decay: of the average.
        every: updates between two steps of the average.
        device: "same": it lies where the weights do. "cpu": in the host's memory, to which a step copies the weights,
            one tensor at a time.
    """

    def __init__(
        self, weights: Mapping[str, Tensor], decay: float, every: int = 1, device: Literal["same", "cpu"] = "same"
    ) -> None:
        self.weights = dict(weights)
        self.decay, self.every, self.device = decay, every, device
        place = torch.device("cpu") if device == "cpu" else None
        self.average = {name: _wide(p, place) for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Take in the weights after update number `updates` (counted from 1)."""
        if updates % self.every:
            return
        if self.device == "cpu":
            for name, p in self.weights.items():
                average = self.average[name]
                average.lerp_(p.detach().to(average), 1 - self.decay)
            return
        now = [p.detach().to(self.average[name].dtype) for name, p in self.weights.items()]
        torch._foreach_lerp_(list(self.average.values()), now, 1 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Have the averaged values in the weights' place inside the block."""
        kept = {name: p.detach().clone() for name, p in self.weights.items()}
        self._put(self.average)
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self.weights.items():
            p.copy_(values[name])

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back a saved average."""
        for name, x in self.average.items():
            x.copy_(tensors[name])


def _wide(p: Tensor, device: torch.device | None) -> Tensor:
    """Return a copy in fp32, or in the weight's own type where that is wider; None: on its own device."""
    return p.detach().to(device or p.device, torch.promote_types(p.dtype, torch.float32), copy=True)

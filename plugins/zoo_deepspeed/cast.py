"""Half precision: what DeepSpeed wraps casts in its forward pass, and fp16's loss is scaled.

The scaler is DeepSpeed's own; it is driven from here, so that the scale a gradient is divided by is the one its loss
was multiplied with (DeepSpeed's step raises it in between, on the update on which it grows).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from zoo.interfaces import Batch, Losses
from zoo.rng import Rng
from zoo.train.resblock import say_if_slow
from zoo.train.stage import Stage
from zoo_deepspeed.settings import LossScaler

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Cast(nn.Module):
    """A stage whose forward runs under autocast.

    Args:
        stage: what is trained.
        precision: "bf16" and "fp16" cast; anything else does not.
        device: where it runs.
        keep: keep a cast weight until the forward is done; not where weights come and go.
    """

    def __init__(self, stage: Stage, precision: str, device: torch.device, *, keep: bool) -> None:
        super().__init__()
        self.stage = stage
        self._how: dict[str, Any] = {
            "device_type": device.type, "dtype": TYPES.get(precision), "enabled": precision in TYPES,
            "cache_enabled": keep,
        }  # fmt: skip
        if precision == "fp16":
            say_if_slow(device, precision)

    def forward(self, batch: Batch, step: int, rng: Rng) -> Losses:
        """Return the stage's losses."""
        with torch.autocast(**self._how):
            return self.stage(batch, step, rng)


class LossScale:
    """The factor before the loss: DeepSpeed's dynamic scaler, or a fixed number."""

    def __init__(self, said: LossScaler) -> None:
        from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

        self._fixed = said.loss_scale
        self._scaler = DynamicLossScaler(
            init_scale=2.0**said.initial_scale_power,
            scale_window=said.loss_scale_window,
            min_scale=said.min_loss_scale,
            delayed_shift=said.hysteresis,
            consecutive_hysteresis=said.consecutive_hysteresis,
            raise_error_at_min_scale=False,
        )

    @property
    def value(self) -> float:
        """The scale."""
        return self._fixed or self._scaler.cur_scale

    def move(self, finite: bool, *, loss: bool) -> dict[str, float]:
        """Take in an update; return the scale it had, and "settling" where a lower one will end the skips.

        Args:
            finite: the update was made.
            loss: the losses were finite, so that it was gradients that overflowed.
        """
        value = self.value
        settling = not finite and loss and not self._fixed and value > self._scaler.min_scale
        if finite or loss:
            self._scaler.update_scale(not finite)
        return {"loss_scale": value, **({"settling": 1.0} if settling else {})}

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {name: getattr(self._scaler, name) for name in _STATE}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""
        for name in _STATE:
            setattr(self._scaler, name, state[name])


_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")

"""A denoiser that knows its pictures, and a system around it: what is given and kept can be told from the result."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor, nn

import zoo
from zoo.diffusion.config import Schedule
from zoo.diffusion.process import to_eps
from zoo.interfaces import Batch, Cond, Prediction
from zoo.rng import Rng
from zoo.testing.kit import Pictures


@attrs.frozen(kw_only=True)
class Config:
    """What a fake says of itself."""

    reads: str = "nothing"
    cond_drop: float = 0.1
    crop: int | None = None


class Copier(nn.Module):
    """A denoiser sure of its picture: the one it is given from below, or a grey that the caption's embedding says."""

    prediction, bounded = "eps", True

    def __init__(self, reads: str = "nothing", crop: int | None = None) -> None:
        super().__init__()
        self.config = Config(reads=reads, crop=crop)
        self.schedule = Schedule()
        self.scale = nn.Parameter(torch.ones(()))
        self.asked: list[dict[str, Any]] = []

    def predict(self, z: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        self.asked.append({"z": z, "logsnr": logsnr, "cond": cond})
        if cond.low is not None:
            x = cond.low
        elif cond.text is not None:
            x = torch.tanh(cond.text.mean((1, 2)))[:, None, None, None].expand_as(z)
        else:
            x = torch.zeros_like(z)
        return Prediction(to_eps("x0", x.to(z), z, logsnr) * self.scale)

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> dict[str, Tensor]:
        assert batch.z is not None
        self.asked.append({"z": batch.z, "cond": cond})
        return {"loss": batch.z.square().mean() * self.scale}


def system(reads: str = "nothing", *overrides: str, **parts: Any) -> Any:
    """Return a two-stage cascade of fakes, 16 and 32 px, with its fitted tokenizer where captions are read."""
    g = zoo.build("imagen-tiny", parts={"base": Copier(reads), "sr32": Copier(reads), **parts}, overrides=overrides)
    g.parts["tokenizer"].fit(Pictures(32), seed=0)
    for role in g.parts:
        g.mark_ready(role)
    return g

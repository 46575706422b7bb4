"""The best denoiser of one normal, known in closed form, and one that reads its condition."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.diffusion.config import Schedule
from zoo.diffusion.process import alpha_sigma
from zoo.interfaces import Cond, Prediction


class Exact:
    """The mean of x given z where x is normal, in any parameterisation; it notes how often and of what it is asked."""

    def __init__(
        self, mean: float = 0.3, deviation: float = 0.5, prediction: str = "eps", schedule: Schedule | None = None,
        bounded: bool = False,
    ) -> None:  # fmt: skip
        self.mean, self.deviation, self.prediction = mean, deviation, prediction
        self.schedule, self.bounded = schedule or Schedule(), bounded
        self.asked: list[tuple[Tensor, Tensor]] = []

    def predict(self, z: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        self.asked.append((z, logsnr))
        alpha, sigma = alpha_sigma(logsnr, z)
        gain = alpha * self.deviation**2 / ((alpha * self.deviation) ** 2 + sigma**2)
        x = self.mean + gain * (z - alpha * self.mean)
        eps = (z - alpha * x) / sigma
        return Prediction({"x0": x, "eps": eps, "v": alpha * eps - sigma * x}[self.prediction])


class Reads(Exact):
    """A normal about the label, and about zero without one."""

    def __init__(self, cond_drop: float = 0.1, **more: Any) -> None:
        super().__init__(**more)
        self.config = SimpleNamespace(cond_drop=cond_drop)

    def predict(self, z: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        assert cond.label is not None
        assert len(cond.label) == len(z)
        drop = torch.zeros(len(z), dtype=torch.bool) if cond.drop is None else cond.drop
        self.mean = cond.label.to(z).masked_fill(drop, 0).view(-1, 1, 1, 1)  # type: ignore[assignment]
        return super().predict(z, logsnr, cond)


@pytest.fixture
def exact() -> Callable[..., Exact]:
    return Exact


@pytest.fixture
def reads() -> Callable[..., Reads]:
    return Reads

"""A case in which one gradient scale is not enough: bf16, fp16 with torch's GradScaler, and fp16 with a scale a block.

A stack of four residual MLP branches learns two things of a pair of numbers: after two of them whether the first
number is small, and after all four a class from a table. The first loss has weight 2^12 and the second 2^-26, so that
gradients of the early branches are some 2^40 times those of the late ones, as the depth and width of a very large
model alone would have it. Adam does not mind, and bf16 has the exponents of fp32. In fp16 a scale that the early
branches bear turns the gradients of the late ones into zeros; with a scale for each branch every one learns.

Labels are noisy, so that losses end well above zero; what is compared is the expected loss of the second task.

    python -m zoo.bench.resblock curves.png          about half a minute a curve

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, appendix D
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.bench.timing import Row
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn.precision import wide
from zoo.nn.residual import Residual
from zoo.parts import Recipe
from zoo.rng import Rng
from zoo.train import optim
from zoo.train.engine import TorchEngine
from zoo.train.options import TrainOptions
from zoo.train.stage import Stage

NUMBERS, CLASSES, WIDTH, HIDDEN = 16, 16, 32, 64
BATCH, STEPS, NOISE = 64, 3000, 0.3
LOUD, QUIET = 2.0**12, 2.0**-26
"""Weights of the two losses."""
EVERY = 25
"""Updates between two points of a curve."""


class Mlp(nn.Module):
    """The branch: norm, two layers with a GELU between them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(x))))


@attrs.frozen
class Config:
    """All that a stage reads of a part's config."""

    train: Recipe


class Stack(nn.Module):
    """The part: embeddings and both heads in fp32, as everywhere, and four residual sums."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        # Adam's eps is far under the square root of any second moment here.
        self.config = Config(
            Recipe(optimizer="adam", lr=3e-3, betas=(0.9, 0.99), eps=1e-30, clip=None, batch=BATCH, steps=steps)
        )
        self.first, self.second = nn.Embedding(NUMBERS, WIDTH), nn.Embedding(NUMBERS, WIDTH)
        self.early = nn.Sequential(Residual(Mlp()), Residual(Mlp()))
        self.late = nn.Sequential(Residual(Mlp()), Residual(Mlp()))
        self.coarse = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2))
        self.fine = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))
        # Which class a pair has; a buffer, so that it is no parameter.
        table = Rng(0, range(NUMBERS)).integers(CLASSES, NUMBERS)
        self.register_buffer("table", table, persistent=False)

    def logits(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Return [B,2] and [B,classes] of pairs [B,2]."""
        middle = self.early(self.first(pairs[:, 0]) + self.second(pairs[:, 1]))
        states = self.late(middle)
        with torch.autocast(pairs.device.type, enabled=False):
            return self.coarse(wide(middle)), self.fine(wide(states))

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return the weighted sum on pairs [B,2] with noisy labels."""
        pairs = batch.codes
        assert pairs is not None
        small = (pairs[:, 0] < NUMBERS // 2).long() ^ (rng.uniform() < NOISE).long()
        noisy = torch.where(rng.uniform() < NOISE, rng.integers(CLASSES), self._classes(pairs))
        coarse, fine = self.logits(pairs)
        return {"loss": LOUD * F.cross_entropy(coarse, small) + QUIET * F.cross_entropy(fine, noisy)}

    def _classes(self, pairs: Tensor) -> Tensor:
        table = self.get_buffer("table")
        return table[pairs[:, 0], pairs[:, 1]]

    @torch.no_grad()
    def expected(self) -> float:
        """Return the second task's expected loss over all pairs and labels, nats, in fp32."""
        self.eval()
        numbers = torch.arange(NUMBERS)
        pairs = torch.cartesian_prod(numbers, numbers)
        p = F.one_hot(self._classes(pairs), CLASSES) * (1 - NOISE) + NOISE / CLASSES
        loss = -(p * self.logits(pairs)[1].log_softmax(-1)).sum(1).mean()
        self.train()
        return float(loss)


class System:
    """What a stage needs of a system."""

    def __init__(self, steps: int) -> None:
        torch.manual_seed(0)
        self.parts = {"stack": Stack(steps)}
        self.stages = {"stack": ("stack",)}

    def reads(self, part: str) -> tuple[str, ...]:
        """Return the frozen parts that a stage reads: none."""
        return ()

    def loss(self, part: str, batch: Batch, *, step: int, rng: Rng) -> Losses:
        """Return the stack's."""
        return self.parts["stack"].loss(batch, Cond(), step=step, rng=rng)


def batch_at(step: int) -> tuple[Batch, Rng]:
    """Return the batch of an update, and its random source."""
    rng = Rng(1, range(BATCH), step=step)
    return Batch(codes=rng.fork("pairs").integers(NUMBERS, 2)), rng


@attrs.define
class Curve:
    """One training."""

    losses: list[tuple[int, float]] = attrs.field(factory=list)
    """(updates, expected loss of the second task)."""
    scales: list[tuple[int, Mapping[str, float]]] = attrs.field(factory=list)
    """(updates, log2 of the gradient scale by block; "" is one for all)."""
    skipped: int = 0


def train(precision: str, steps: int = STEPS, state: Mapping[str, Any] | None = None) -> Curve:
    """Train by the torch engine.

    Args:
        precision: "fp32", "bf16" or "resblock".
        steps: updates.
        state: gradient scales to begin with, as `Scales.state_dict` has them; None: the law's own.
    """
    system, curve = System(steps), Curve()
    stack = system.parts["stack"]
    engine = TorchEngine(TrainOptions(model="stack", precision=precision), device="cpu")  # type: ignore[arg-type]
    engine.prepare(Stage(system, "stack"), stack.config.train, steps=steps)
    if state is not None:
        assert engine.scales is not None
        engine.scales.load_state_dict(state)
    for step in range(steps):
        batch, rng = batch_at(step)
        engine.backward(engine(batch, step, rng)["loss"])
        made = engine.step()
        curve.skipped += int(made["skipped"])
        if _shows(step, steps):
            curve.losses.append((step + 1, stack.expected()))
            scales = {name.removeprefix("scale/stack."): x for name, x in made.items() if name.startswith("scale/")}
            curve.scales.append((step + 1, scales))
    return curve


def train_one_scale(steps: int = STEPS) -> Curve:
    """Train in fp16 as torch does it: autocast, and one dynamic scale with GradScaler's own settings."""
    system, curve = System(steps), Curve()
    stack, recipe = system.parts["stack"], system.parts["stack"].config.train
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.Adam(stack.parameters(), recipe.lr, recipe.betas, recipe.eps)
    for step in range(steps):
        batch, rng = batch_at(step)
        with torch.autocast("cpu", dtype=torch.float16):
            loss = stack.loss(batch, Cond(), step=step, rng=rng)["loss"]
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        optimizer.param_groups[0]["lr"] = optim.rate(recipe, step, steps)
        scaler.step(optimizer)
        before = scaler.get_scale()
        scaler.update()
        curve.skipped += scaler.get_scale() < before
        if _shows(step, steps):
            curve.losses.append((step + 1, stack.expected()))
            curve.scales.append((step + 1, {"": float(torch.tensor(scaler.get_scale()).log2())}))
    return curve


def _shows(step: int, steps: int) -> bool:
    return (step + 1) % EVERY == 0 or step in (0, steps - 1)


def curves(steps: int = STEPS) -> dict[str, Curve]:
    """Return the three trainings."""
    return {"bf16": train("bf16", steps), "fp16, one scale": train_one_scale(steps),
            "fp16, a scale a block": train("resblock", steps)}  # fmt: skip


def rows(steps: int = STEPS) -> list[Row]:
    """Return the final loss with a scale a block, beside bf16's and beside that of fp16 with one scale."""
    ends = {name: curve.losses[-1][1] for name, curve in curves(steps).items()}
    ours = ends.pop("fp16, a scale a block")
    sizes = {"steps": steps, "batch": BATCH, "width": WIDTH, "blocks": 4}
    return [
        Row(f"resblock fp16's final loss beside {name}'s", ours, end, end / ours, "nats", sizes)
        for name, end in ends.items()
    ]


def draw(found: Mapping[str, Curve], path: Path) -> None:
    """Draw losses and scales over updates. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    losses, scales = figure.subplots(1, 2)
    for name, curve in found.items():
        losses.plot(*zip(*curve.losses, strict=True), label=f"{name}: {curve.losses[-1][1]:.3f}", linewidth=1)
        for block in curve.scales[-1][1]:
            points = [(step, values[block]) for step, values in curve.scales]
            scales.plot(*zip(*points, strict=True), label=block or name, linewidth=1)
    losses.set_ylabel("expected loss of the second task, nats")
    scales.set_ylabel("log2 of the gradient scale")
    for axes in (losses, scales):
        axes.set_xlabel("updates")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    made = curves()
    draw(made, Path(sys.argv[1]))
    for label, one in made.items():
        print(f"{label}: {one.losses[-1][1]:.4f} nats, {one.skipped} updates skipped")

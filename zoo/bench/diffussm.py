"""DiffuSSM beside DiT over the number of positions: time of a training step, and FLOPs.

Both read a latent without patches and have as many parameters (the S sizes, 12 blocks 384 wide). What grows with the
length alone is counted: `python -m zoo.bench.diffussm curves.png` draws both pictures, measured seconds on this machine
and planned multiplications of the XL sizes beside DiT-XL/2, from 256 to 65 536 positions, and prints the figures.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from zoo.bench.imagen import stirred
from zoo.bench.timing import Row, alternate
from zoo.interfaces import Batch, Cond
from zoo.rng import Rng
from zoo.specs import locate

FORMULA = (256, 1024, 4096, 16_384, 65_536)
"""Positions at which multiplications are planned."""
PAIRS = {256: 7, 1024: 5, 4096: 2, 16_384: 1}
"""Positions at which both are timed, on square latents -> timed pairs."""


def configs(length: int) -> dict[str, Any]:
    """Return the S sizes for this many positions, predicting noise alone."""
    side = math.isqrt(length)
    named = {"diffussm": "diffussm_s_256", "dit": "dit_s_1_256"}
    return {
        name: evolve(locate(f"zoo_diffussm.variants:{variant}")(), size=(side, side), variance="fixed")
        for name, variant in named.items()
    }


def step(name: str, config: Any) -> Callable[[], None]:
    """Return the call of one picture's loss and gradients."""
    torch.manual_seed(0)
    net = stirred(locate(f"zoo_diffussm.model:{name}")(config)).train()
    z: Tensor = torch.randn(1, config.channels, *config.size)
    cond, rng = Cond(label=torch.tensor([1])), Rng(0, range(1))

    def call() -> None:
        net.zero_grad(set_to_none=True)
        net.loss(Batch(z=z), cond, step=0, rng=rng)["loss"].backward()

    return call


def row(length: int, pairs: int) -> Row:
    """Return the time of a training step of one picture of this many positions, DiT's as the peer's."""
    both = configs(length)
    timing = alternate(step("diffussm", both["diffussm"]), step("dit", both["dit"]), pairs)
    numbers = {f"{name}_params": config.cost().params for name, config in both.items()}
    work = {f"{name}_mflops": config.cost().flops // 10**6 for name, config in both.items()}
    name = f"diffussm train step, {length} positions, beside DiT"
    return Row(name, timing.ours, timing.peer, timing.ratio, "s", {"positions": length, **numbers, **work})


def rows(pairs: Mapping[int, int] = PAIRS) -> list[Row]:
    """Return the rows of each length."""
    return [row(length, count) for length, count in pairs.items()]


def exponents(seconds: Mapping[int, float]) -> dict[int, float]:
    """Return by which power of the length time has grown since the length before."""
    lengths = sorted(seconds)
    return {b: math.log(seconds[b] / seconds[a]) / math.log(b / a) for a, b in itertools.pairwise(lengths)}


def planned() -> dict[str, dict[int, float]]:
    """Return multiply-adds of a forward pass in billions, FFTs left out: name -> positions -> number."""
    variants = {"DiffuSSM-XL": "diffussm_xl_256", "DiT-XL/1": "dit_xl_2_256", "DiT-XL/2": "dit_xl_2_256"}
    found: dict[str, dict[int, float]] = {}
    for name, variant in variants.items():
        base = locate(f"zoo_diffussm.variants:{variant}")()
        base = evolve(base, patch=1) if name == "DiT-XL/1" else base
        found[name] = {length: evolve(base, size=(math.isqrt(length),) * 2).cost().flops / 2e9 for length in FORMULA}
    return found


def draw(measured: list[Row], path: Path) -> None:
    """Draw seconds and multiplications over positions."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    lengths = [found.sizes["positions"] for found in measured]
    left.plot(lengths, [found.ours for found in measured], marker="o", label="DiffuSSM-S")
    left.plot(lengths, [found.peer for found in measured], marker="o", label="DiT-S/1")
    left.set_ylabel("seconds a picture, forward and backward")
    for name, values in planned().items():
        right.plot(list(values), list(values.values()), marker="o", label=name)
    right.set_ylabel("billion multiply-adds forward, FFTs left out")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="positions of the latent")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def main(path: str) -> None:
    """Measure, print and draw."""
    torch.set_num_threads(2)
    measured = []
    for length, count in PAIRS.items():
        found = row(length, count)
        measured.append(found)
        print(f"{found.name}: ours {found.ours:.3f} s, DiT {found.peer:.3f} s, {found.ratio:.2f} times", flush=True)
    for who in ("ours", "peer"):
        seconds = {found.sizes["positions"]: getattr(found, who) for found in measured}
        print(f"{who}: growth with the length, power", {n: round(x, 2) for n, x in exponents(seconds).items()})
    for name, values in planned().items():
        print(name, {n: round(x, 1) for n, x in values.items()}, "G multiply-adds")
    draw(measured, Path(path))


if __name__ == "__main__":
    main(sys.argv[1])

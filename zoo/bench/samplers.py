"""How far samplers are from a distribution that is known, by how often they ask the network.

The data are numbers of a mixture of normals of very different widths, for which the best denoiser is known in closed
form. Every sampler starts from the same evenly spread quantiles of a normal, and what it draws is compared, in order,
with the quantiles of the mixture: the root mean square is the Wasserstein distance, and for a deterministic sampler the
distance from the exact flow, which in one dimension keeps the order. In double precision; takes a few seconds.

    python -m zoo.bench.samplers [--schedule linear]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import attrs
import click
import torch
from torch import Tensor
from torch.special import ndtr, ndtri

from zoo.bench.timing import Row
from zoo.config import fields
from zoo.diffusion.config import Diffusing, Schedule
from zoo.diffusion.samplers import Estimate, Path, solve
from zoo.diffusion.sampling import levels
from zoo.rng import Rng

EVALUATIONS = (8, 16, 32, 64, 128, 256)
NUMBERS = 2**13
SEEDS = 4
"""Of a stochastic sampler; the table has the mean."""
EDM = Schedule(kind="edm")
SAMPLERS = {
    "ddpm": Diffusing(sampler="ddpm"),
    "ddpm, gamma 1": Diffusing(sampler="ddpm", gamma=1.0),
    "ddim": Diffusing(sampler="ddim"),
    "dpm++": Diffusing(sampler="dpm++"),
    "dpm++, EDM's levels": Diffusing(sampler="dpm++", schedule=EDM),
    "heun": Diffusing(sampler="heun"),
    "heun, EDM's levels": Diffusing(sampler="heun", schedule=EDM),
}
PEER = "ddim"
KINDS = get_args(fields(Schedule)["kind"])


@attrs.frozen
class Mixture:
    """Normals, all equally likely, and the best denoiser of them."""

    means: tuple[float, ...] = (-0.8, -0.3, 0.5, 0.7)
    deviations: tuple[float, ...] = (0.05, 0.1, 0.02, 0.2)

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return like.new_tensor(self.means), like.new_tensor(self.deviations)

    def denoised(self, z: Tensor, alpha: float, sigma: float) -> Tensor:
        """Return the mean of x given z = alpha x + sigma eps, elementwise."""
        means, deviations = self._columns(z)
        variance = (alpha * deviations).square() + sigma**2
        off = z[..., None] - alpha * means
        share = (-off.square() / (2 * variance) - variance.log() / 2).softmax(-1)
        return (share * (means + alpha * deviations.square() / variance * off)).sum(-1)

    def quantiles(self, u: Tensor) -> Tensor:
        """Return where the distribution function is u, by bisection."""
        means, deviations = self._columns(u)
        low, high = torch.full_like(u, -10.0), torch.full_like(u, 10.0)
        for _ in range(60):
            middle = (low + high) / 2
            below = ndtr((middle[..., None] - means) / deviations).mean(-1) < u
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return low


def with_evaluations(how: Diffusing, evaluations: int) -> Diffusing:
    """Return the same with as many steps as ask the network this often, or once less."""
    steps = (evaluations + 1) // 2 if how.sampler == "heun" else evaluations
    return attrs.evolve(how, steps=steps)


def error(how: Diffusing, schedule: Schedule, data: Mixture, numbers: int = NUMBERS) -> float:
    """Return the distance of what is drawn from the data."""
    path = Path(levels(how.schedule or schedule, how))
    u = (torch.arange(numbers, dtype=torch.float64) + 0.5) / numbers
    start, exact = ndtri(u), data.quantiles(u)

    def estimate(z: Tensor, k: int) -> Estimate:
        return Estimate(data.denoised(z, path.alpha[k], path.sigma[k]))

    def once(seed: int) -> Tensor:
        rng = Rng(seed, range(numbers))
        return solve(start, path, estimate, how, lambda k: rng.fork(f"step {k}").normal().double())

    seeds = range(SEEDS if how.sampler == "ddpm" else 1)
    return sum(float((once(seed).sort().values - exact).square().mean().sqrt()) for seed in seeds) / len(seeds)


def table(schedule: Schedule, evaluations: Sequence[int] = EVALUATIONS) -> dict[str, list[float]]:
    """Return the errors of every sampler, one for each number of evaluations."""
    data = Mixture()
    return {
        name: [error(with_evaluations(how, count), schedule, data) for count in evaluations]
        for name, how in SAMPLERS.items()
    }


def rows(evaluations: Sequence[int] = EVALUATIONS) -> list[Row]:
    """Return the error of every sampler beside DDIM's with as many evaluations."""
    errors = table(Schedule(), evaluations)
    return [
        Row(f"{name}'s error beside {PEER}'s", mine, peer, peer / mine, "deviation", {"evaluations": count})
        for name in errors
        if name != PEER
        for count, mine, peer in zip(evaluations, errors[name], errors[PEER], strict=True)
    ]


@click.command()
@click.option("--schedule", "kind", type=click.Choice(KINDS), default="cosine", show_default=True, help="Its kind.")
def main(kind: Any) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    width = max(map(len, SAMPLERS))
    click.echo(" " * width + "".join(f"{count:>10}" for count in EVALUATIONS))
    for name, errors in table(Schedule(kind=kind)).items():
        click.echo(f"{name:<{width}}" + "".join(f"{x:10.5f}" for x in errors))


if __name__ == "__main__":
    main()

"""Samplers against what is known in closed form: of data that are normal, the flow, its solution, and every moment.

Of x ~ N(m, s^2), y = z / alpha has the exact flow y - m ~ sqrt(s^2 + (sigma / alpha)^2), and every sampler's step is an
affine map of z and noise, whose mean and variance are followed here by an independent computation.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zoo.diffusion.config import Diffusing, Schedule
from zoo.diffusion.process import alpha_sigma
from zoo.diffusion.samplers import Estimate, Path, ancestral, ddim, heun, multistep, solve
from zoo.diffusion.sampling import levels
from zoo.rng import Rng

MEAN, DEVIATION = 0.3, 0.5
Z = torch.linspace(-2.5, 2.5, 11, dtype=torch.float64)


def silent(k: int) -> Tensor:
    raise AssertionError("a deterministic sampler asked for noise")


def gain(path: Path, k: int) -> float:
    a, b = path.alpha[k], path.sigma[k]
    return a * DEVIATION**2 / ((a * DEVIATION) ** 2 + b**2)


def estimator(path: Path, variance: float | None = None) -> Callable[[Tensor, int], Estimate]:
    def estimate(z: Tensor, k: int) -> Estimate:
        x = MEAN + gain(path, k) * (z - path.alpha[k] * MEAN)
        return Estimate(x, None if variance is None else torch.full_like(z, variance))

    return estimate


def path_of(schedule: Schedule, steps: int) -> Path:
    return Path(levels(schedule, Diffusing(steps=steps)))


def exact(z: Tensor, path: Path) -> Tensor:
    """The flow from the first level to the last one, then the estimate there, where every sampler ends."""
    first, last = (path.sigma[k] / path.alpha[k] for k in (0, len(path) - 1))
    y = MEAN + (z / path.alpha[0] - MEAN) * math.sqrt((DEVIATION**2 + last**2) / (DEVIATION**2 + first**2))
    return estimator(path)(y * path.alpha[len(path) - 1], len(path) - 1).x


def errors(sampler: str, schedule: Schedule, steps: list[int]) -> list[float]:
    found = []
    for n in steps:
        path = path_of(schedule, n)
        drawn = solve(Z, path, estimator(path), Diffusing(sampler=sampler, steps=n), silent)  # type: ignore[arg-type]
        found.append(float((drawn - exact(Z, path)).abs().max()))
    return found


@pytest.mark.parametrize("kind", ["cosine", "linear", "edm"])
@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpm++", 2), ("heun", 2)])
def test_deterministic_samplers_reach_the_flow_at_their_order(kind: str, sampler: str, order: int) -> None:
    schedule = Schedule(kind=kind)  # type: ignore[arg-type]
    found = errors(sampler, schedule, [64, 1024, 2048])
    assert math.log2(found[1] / found[2]) == pytest.approx(order, abs=0.1), found
    assert found[0] < (0.06 if order == 1 else 5e-3)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "heun"])
def test_the_end_is_where_the_whole_flow_ends(sampler: str) -> None:
    """The last level is a step away from clean, so what is drawn nears the data as steps get many."""
    path = path_of(Schedule(kind="edm"), 256)
    drawn = solve(Z, path, estimator(path), Diffusing(sampler=sampler), silent)  # type: ignore[arg-type]
    start = path.sigma[0] / path.alpha[0]
    clean = MEAN + (Z / path.alpha[0] - MEAN) * DEVIATION / math.sqrt(DEVIATION**2 + start**2)
    assert float((drawn - clean).abs().max()) < (0.02 if sampler == "ddim" else 1e-3)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "heun"])
def test_one_level_gives_the_estimate(sampler: str) -> None:
    path = Path([-3.0])
    drawn = solve(Z, path, estimator(path), Diffusing(sampler=sampler), silent)  # type: ignore[arg-type]
    assert torch.equal(drawn, estimator(path)(Z, 0).x)


def test_heun_is_edms_algorithm_in_other_variables() -> None:
    """Algorithm 1 of EDM without churn, written in x / alpha and sigma / alpha, as printed."""
    path = path_of(Schedule(kind="edm"), 18)
    t = [path.sigma[k] / path.alpha[k] for k in range(18)] + [0.0]

    def slope(y: Tensor, k: int) -> Tensor:
        return (y - (MEAN + DEVIATION**2 / (DEVIATION**2 + t[k] ** 2) * (y - MEAN))) / t[k]

    y = Z / path.alpha[0]
    for k in range(18):
        d = slope(y, k)
        ahead = y + (t[k + 1] - t[k]) * d
        y = ahead if t[k + 1] == 0 else y + (t[k + 1] - t[k]) * (d + slope(ahead, k + 1)) / 2
    assert torch.allclose(heun(Z, path, estimator(path)), y, atol=1e-11)


def test_multistep_is_the_papers_where_log_snrs_are_evenly_spaced() -> None:
    """Algorithm 2 of DPM-Solver++, with lambda = logsnr / 2 and D from the last two estimates, as printed."""
    lam = torch.linspace(-5, 4, 12, dtype=torch.float64).tolist()
    path = Path([2 * x for x in lam])
    z, before = Z, None
    for i in range(1, len(lam)):
        h, x = lam[i] - lam[i - 1], estimator(path)(z, i - 1).x
        r = (lam[i - 1] - lam[i - 2]) / h if i > 1 else 1.0
        d = x if before is None else (1 + 1 / (2 * r)) * x - before / (2 * r)
        z = path.sigma[i] / path.sigma[i - 1] * z - path.alpha[i] * (math.exp(-h) - 1) * d
        before = x
    assert torch.allclose(multistep(Z, path, estimator(path)), estimator(path)(z, 11).x, atol=1e-12)


def test_multistep_overshoots_no_further_than_an_even_step() -> None:
    """Levels -4, -3 and 9: in full, x would be extrapolated six times as far as it has come."""
    path = Path([-4.0, -3.0, 9.0])
    asked: list[Tensor] = []
    xs = [torch.zeros(1), torch.ones(1), torch.zeros(1)]

    def estimate(z: Tensor, k: int) -> Estimate:
        asked.append(z)
        return Estimate(xs[k])

    multistep(torch.zeros(1), path, estimate)
    assert float(asked[2]) == pytest.approx(1.5 * path.straight(1)[1], rel=1e-5)


def moments(path: Path, how: Diffusing, between: float | None = None) -> tuple[float, float]:
    """Mean and variance of what a stochastic sampler draws, from N(0, 1), followed step by step."""
    mean, variance = 0.0, 1.0
    for k in range(len(path)):
        a, b, a_s, b_s = path.alpha[k], path.sigma[k], path.alpha[k + 1], path.sigma[k + 1]
        slope = gain(path, k)
        offset = MEAN - slope * a * MEAN  # x = offset + slope z
        if k == len(path) - 1:
            return offset + slope * mean, slope**2 * variance
        beta = 1 - (a / a_s) ** 2  # of the step from s to t
        posterior = beta * b_s**2 / b**2
        if how.sampler == "ddpm":
            of_x, of_z = beta * a_s / b**2, (a / a_s) * b_s**2 / b**2  # Ho et al., eq. (7)
            share = how.gamma if between is None else (between + 1) / 2
            fresh = posterior ** (1 - share) * beta**share
        else:
            fresh = how.eta**2 * posterior
            kept = math.sqrt(b_s**2 - fresh)
            of_x, of_z = a_s - kept * a / b, kept / b
        mean, variance = of_x * offset + (of_x * slope + of_z) * mean, (of_x * slope + of_z) ** 2 * variance + fresh
    raise AssertionError


STOCHASTIC = {
    "ddpm": (Diffusing(sampler="ddpm"), None),
    "ddpm gamma 0.3": (Diffusing(sampler="ddpm", gamma=0.3), None),
    "ddpm gamma 1": (Diffusing(sampler="ddpm", gamma=1.0), None),
    "ddpm learned -1": (Diffusing(sampler="ddpm", gamma=1.0), -1.0),
    "ddpm learned 0.4": (Diffusing(sampler="ddpm"), 0.4),
    "ddim eta 0.5": (Diffusing(sampler="ddim", eta=0.5), None),
    "ddim eta 1": (Diffusing(sampler="ddim", eta=1.0), None),
}
ROWS = 20_000


def drawn(name: str, path: Path, rows: int = ROWS) -> Tensor:
    """What a rule draws, from the same noise as every other one."""
    how, learned = STOCHASTIC[name]
    source = torch.Generator().manual_seed(0)

    def noise(k: int) -> Tensor:
        return torch.randn(rows, dtype=torch.float64, generator=source)

    return solve(noise(-1), path, estimator(path, learned), how, noise)


@pytest.mark.parametrize("name", STOCHASTIC)
@pytest.mark.parametrize("kind", ["cosine", "linear-1000"])
def test_stochastic_samplers_have_the_mean_and_variance_of_their_steps(name: str, kind: str) -> None:
    how, learned = STOCHASTIC[name]
    path = path_of(Schedule(kind=kind), 12)  # type: ignore[arg-type]
    found, (mean, variance) = drawn(name, path), moments(path, how, learned)
    # Five standard errors of a fixed draw; the rules differ by far more, as the next test sees.
    assert float(found.mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / ROWS))
    assert float(found.var()) == pytest.approx(variance, rel=5 * math.sqrt(2 / ROWS))


def test_the_rules_differ_and_all_near_the_data() -> None:
    near = {}
    for name in STOCHASTIC:
        few, many = (drawn(name, path_of(Schedule(), n), 4000) for n in (12, 150))
        near[name] = float(few.var())
        assert float(many.mean()) == pytest.approx(MEAN, abs=5 * DEVIATION / math.sqrt(4000))
        # At most a twentieth short, as steps go, and within four standard errors.
        assert float(many.var()) == pytest.approx(0.975 * DEVIATION**2, rel=0.025 + 4 * math.sqrt(2 / 4000))
    assert near["ddpm"] == pytest.approx(near["ddim eta 1"], rel=1e-9)
    assert near["ddpm"] == pytest.approx(near["ddpm learned -1"], rel=1e-9)
    assert len({round(x, 4) for x in near.values()}) == 5
    assert near["ddpm"] < near["ddpm gamma 0.3"] < near["ddpm learned 0.4"] < near["ddpm gamma 1"]


def test_ancestral_and_ddim_of_eta_one_are_one_process() -> None:
    path, rng = path_of(Schedule(), 9), Rng(3, range(11))

    def noise(k: int) -> Tensor:
        return rng.fork(f"step {k}").normal().double()

    one, two = ancestral(Z, path, estimator(path), noise), ddim(Z, path, estimator(path), noise, eta=1.0)
    assert torch.allclose(one, two, atol=1e-12)
    assert not torch.allclose(one, ddim(Z, path, estimator(path), noise, eta=0.9), atol=1e-2)


def test_a_predicted_variance_takes_gammas_place() -> None:
    path, rng = path_of(Schedule(kind="linear-1000"), 9), Rng(3, range(11))

    def noise(k: int) -> Tensor:
        return rng.fork(f"step {k}").normal().double()

    for gamma in (0.0, 0.3, 1.0):
        fixed = ancestral(Z, path, estimator(path), noise, gamma)
        learned = ancestral(Z, path, estimator(path, 2 * gamma - 1), noise, 0.123)
        assert torch.allclose(fixed, learned, atol=1e-12)


def test_paths_have_the_coefficients_of_their_log_snrs() -> None:
    path = path_of(Schedule(), 7)
    alpha, sigma = alpha_sigma(torch.tensor(path.logsnr[:-1]).double(), torch.zeros(7, 1, dtype=torch.float64))
    assert path.alpha[:-1] == pytest.approx(alpha.flatten().tolist(), rel=1e-6)
    assert path.sigma[:-1] == pytest.approx(sigma.flatten().tolist(), rel=1e-6)
    assert (path.alpha[-1], path.sigma[-1], len(path)) == (1, 0, 7)

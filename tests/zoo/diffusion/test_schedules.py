"""Noise schedules against published numbers, each other, and their own inverses."""

import math
import subprocess
import sys

import attrs
import pytest
import torch

from zoo import config
from zoo.diffusion import tables
from zoo.diffusion.config import FEWEST, Diffusing, Schedule
from zoo.errors import ConfigError

KINDS = ("cosine", "linear", "edm", "cosine-1000", "cosine-4000", "linear-1000")
T = torch.linspace(0, 1, 4001, dtype=torch.float64)


def test_configs_import_no_torch() -> None:
    code = "import sys, zoo.diffusion.config; from zoo.diffusion.config import *; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cosine_at_the_middle_and_the_ends() -> None:
    """Reference: alpha^2(1/2) / alpha^2(0) = 0.49384 of the cosine law."""
    half, start = Schedule().logsnr(torch.tensor([0.5, 0.0], dtype=torch.float64)).sigmoid()
    assert float(half / start) == pytest.approx(0.49384, abs=1e-5)
    assert float(start) == pytest.approx(math.cos(0.008 / 1.008 * math.pi / 2) ** 2, rel=1e-12)
    assert float(Schedule().logsnr(torch.ones(1))) == -20


def test_linear_is_imagen_pytorchs_law() -> None:
    """Its `beta_linear_log_snr`; Imagen's paper prints betas and no law."""
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    expected = [-math.log(math.exp(1e-4 + 10 * x * x) - 1) for x in (0.0, 0.3, 1.0)]
    assert Schedule(kind="linear").logsnr(t).tolist() == pytest.approx(expected, rel=1e-9)


def test_edm_levels_are_the_papers() -> None:
    """EDM, eq. (5) with 18 levels, rho 7, from 80 to 0.002."""
    n, low, high = 18, 0.002 ** (1 / 7), 80 ** (1 / 7)
    sigma = [(high + i / (n - 1) * (low - high)) ** 7 for i in range(n)]
    t = 1 - torch.arange(n, dtype=torch.float64) / (n - 1)
    assert (Schedule(kind="edm").logsnr(t) / -2).exp().tolist() == pytest.approx(sigma, rel=1e-9)


def test_discrete_betas() -> None:
    """Reference: first cosine beta 4.1284e-5, last capped; linear: product of all 1 - beta 4.0358e-5."""
    cosine, linear = tables.cosine_betas(1000), tables.linear_betas(1000)
    assert cosine[0] == pytest.approx(4.1284e-5, rel=1e-4)
    assert cosine[-1] == 0.999
    assert max(cosine[:-1]) < 0.999
    assert (linear[0], linear[-1]) == (pytest.approx(1e-4), pytest.approx(0.02))
    last = Schedule(kind="linear-1000").logsnr(torch.ones(1, dtype=torch.float64))
    assert float(last.sigmoid()) == pytest.approx(4.0358e-5, rel=1e-4)
    first = Schedule(kind="cosine-1000").logsnr(torch.zeros(1, dtype=torch.float64))
    assert float((-first).sigmoid()) == pytest.approx(cosine[0], rel=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_tables_are_products_of_betas(name: str) -> None:
    betas = {"cosine": tables.cosine_betas, "linear": tables.linear_betas}[name](1000)
    schedule = Schedule(kind=f"{name}-1000")  # type: ignore[arg-type]
    found = schedule.logsnr(torch.arange(1000, dtype=torch.float64) / 1000).sigmoid()
    kept = (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)
    assert torch.allclose(found, kept, rtol=1e-10, atol=0)


def test_continuous_laws_are_the_limits_of_the_tables() -> None:
    t = torch.linspace(0.2, 0.9, 50, dtype=torch.float64)
    for name, apart in (("cosine", 0.02), ("linear", 0.12)):  # imagen-pytorch's linear law rounds the sum of the betas
        fine, law = Schedule(kind=f"{name}-1000"), Schedule(kind=name)  # type: ignore[arg-type]
        assert float((fine.logsnr(t) - law.logsnr(t + 1e-3)).abs().max()) < apart


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [0.0, 2 * math.log(64 / 256)])
def test_time_is_the_inverse(kind: str, shift: float) -> None:
    schedule = Schedule(kind=kind, shift=shift)  # type: ignore[arg-type]
    found = schedule.logsnr(T)
    inside = (found > schedule.logsnr_min) & (1 - 1 / (schedule.steps or 1e9) >= T)
    # Beside a discrete step, a time is taken for the step itself.
    near = 1.01 * 0.01 / schedule.steps if schedule.steps else 1e-9
    assert float((schedule.time(found) - T)[inside].abs().max()) < near
    assert bool((found.diff() <= 0).all())
    assert bool((found[inside].diff() < 0).all())


@pytest.mark.parametrize("kind", ["cosine-1000", "cosine-4000", "linear-1000"])
def test_a_discrete_step_is_found_again_exactly_through_fp32(kind: str) -> None:
    schedule = Schedule(kind=kind, shift=-1.3)  # type: ignore[arg-type]
    assert schedule.steps is not None
    steps = torch.arange(schedule.steps, dtype=torch.float64)
    t = steps / schedule.steps
    assert torch.equal(schedule.time(schedule.logsnr(t).float()), t.float())


def test_a_shift_moves_the_log_snr_and_nothing_else() -> None:
    """Of simple diffusion: pictures of four times the side are as noisy as if averaged over 4 x 4 pixels."""
    plain, shifted = Schedule(), Schedule(shift=2 * math.log(64 / 256))
    t = torch.linspace(0.01, 0.99, 20, dtype=torch.float64)
    assert torch.allclose(shifted.logsnr(t), plain.logsnr(t) - math.log(16), atol=1e-12)


def test_a_law_is_clamped_and_a_table_is_not() -> None:
    ends = torch.tensor([0.0, 1.0])
    assert Schedule(logsnr_min=-10, logsnr_max=5).logsnr(ends).tolist() == [5, -10]
    assert Schedule(kind="linear-1000", logsnr_min=-1, logsnr_max=1).logsnr(ends)[1] < -10


def test_types_and_inference_mode() -> None:
    for kind in KINDS:
        schedule = Schedule(kind=kind)  # type: ignore[arg-type]
        for dtype in (torch.float32, torch.float64):
            assert schedule.logsnr(T.to(dtype)).dtype == dtype
            assert schedule.time(T.to(dtype)).dtype == dtype
    with torch.inference_mode():
        Schedule(kind="linear-1000").logsnr(T)
    weight = torch.ones(1, requires_grad=True)
    (weight * Schedule(kind="linear-1000").logsnr(torch.rand(3))).sum().backward()


@pytest.mark.parametrize("kind", ["cosine", "linear-1000"])
def test_a_compiled_network_may_ask_for_the_time(kind: str, recwarn: pytest.WarningsRecorder) -> None:
    schedule = Schedule(kind=kind)  # type: ignore[arg-type]
    logsnr = schedule.logsnr(torch.rand(3, generator=torch.Generator().manual_seed(0)))
    compiled = torch.compile(schedule.time, backend="eager", fullgraph=True)
    assert torch.equal(compiled(logsnr), schedule.time(logsnr))
    assert not [w for w in recwarn if "lru_cache" in str(w.message)]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"sampler": "dpm++", "steps": 2}, "'steps' is 2, of which sampler = 'dpm++' needs 3 or more"),
        ({"sampler": "heun", "steps": 1}, "'steps' is 1, of which sampler = 'heun' needs 2 or more"),
        ({"sampler": "ddpm", "spacing": "1"}, "'spacing' has 1 steps, of which sampler = 'ddpm' needs 2 or more"),
        ({"sampler": "dmp++"}, "did you mean 'dpm++'?"),
        ({"spacing": "fast28"}, "did you mean 'fast27'?"),
        ({"spacing": "10,0"}, "'10,0' is no list of steps a section"),
        ({"percentile": 1.5}, "percentile"),
        ({"cap": 0.5}, "cap"),
        ({"schedule": {"kind": "cosin"}}, "did you mean 'cosine'?"),
        ({"schedule": {"logsnr_max": -30}}, "'logsnr_max' must exceed logsnr_min (-20), got -30"),
    ],
)
def test_wrong_settings_are_one_clear_line(data: dict, says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        config.structure(data, Diffusing, "sampling.base")
    assert str(refusal.value).startswith("sampling.base")
    assert says in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_sampler_has_a_fewest_number_of_steps_which_works() -> None:
    for sampler, fewest in FEWEST.items():
        assert Diffusing(sampler=sampler, steps=fewest).levels == fewest  # type: ignore[arg-type]
    how = Diffusing(sampler="heun", spacing="fast27")
    assert (how.levels, how.evaluations) == (27, 53)
    assert attrs.evolve(how, sampler="ddim").evaluations == 27

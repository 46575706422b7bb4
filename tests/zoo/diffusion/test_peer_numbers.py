"""Whole trajectories beside those of diffusers, whose numbers are kept here.

Made with diffusers 0.42.1, its noise replaced by 0.3 everywhere and the network by sin(z + 0.2 logsnr), from z evenly
spaced in [-2, 2]: z after nine steps, then what is drawn. It keeps its tables in fp32, hence the tolerance.

    ddpm learned C   DDPMScheduler, squaredcos_cap_v2, learned_range with cos(3 z), smart27, dynamic thresholding at
                     0.95 with sample_max_value C
    ddpm gamma G     DDPMScheduler, linear, v_prediction, fixed_small (0) and fixed_large (1), linspace of 25
    ddim E           DDIMScheduler, linear, epsilon, eta E, leading of 20, set_alpha_to_one
    dpm++            DPMSolverMultistepScheduler, linear, sample, order 2, use_lu_lambdas of 15, final sigma zero
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from zoo.diffusion.config import Diffusing, Schedule
from zoo.diffusion.process import to_x0
from zoo.diffusion.samplers import Estimate, Path, solve
from zoo.diffusion.sampling import levels
from zoo.diffusion.threshold import dynamic

MIDDLE = 9
PEER = {
    "ddpm learned 1.5": [1.069381, 1.069437, 1.0695, 1.069579, 1.069646, 1.075821, 1.075892, 1.07597,
                         0.608533, 0.608574, 0.608621, 0.60868, 0.60873, 0.613363, 0.613416, 0.613466],
    "ddpm learned 1.0": [1.069381, 1.069437, 1.0695, 1.069579, 1.069646, 1.075821, 1.075892, 1.07597,
                         0.610727, 0.61075, 0.610776, 0.610809, 0.610837, 0.613404, 0.613433, 0.613466],
    "ddpm gamma 0.0": [0.698949, 0.720853, 0.742366, 0.763431, 0.784024, 0.804162, 0.823909, 0.843367,
                       0.048104, 0.048365, 0.048622, 0.048874, 0.049121, 0.049364, 0.049602, 0.049838],
    "ddpm gamma 1.0": [0.700318, 0.72222, 0.743733, 0.764797, 0.785389, 0.805527, 0.825273, 0.844731,
                       0.176025, 0.176304, 0.176578, 0.176848, 0.177112, 0.177372, 0.177627, 0.177879],
    "ddim 0.0": [-61.516778, -44.015926, -17.623519, 7.391384, 16.801131, 25.589292, 34.68863, 46.163416,
                 -221.237214, -157.003965, -64.010568, 25.852787, 60.152754, 91.505055, 124.714018, 164.198301],
    "ddim 0.5": [-57.455929, -40.785321, -1.137359, 12.191318, 22.686921, 32.516083, 42.099022, 50.120097,
                 -203.885625, -144.08504, -0.365325, 45.209712, 83.408064, 117.389276, 153.106195, 180.377253],
    "dpm++": [-1.48067, -1.341992, -1.12413, -0.694528, 0.148397, 1.007874, 1.34013, 1.464721,
              0.578416, 0.581947, 0.58327, 0.570612, 0.547905, 0.543142, 0.541269, 0.540323],
}  # fmt: skip
LINEAR = Schedule(kind="linear-1000")


def drawn(path: Path, how: Diffusing, prediction: str, bound: Callable[[Tensor], Tensor], learned: bool) -> Tensor:
    seen: dict[int, Tensor] = {}

    def estimate(z: Tensor, k: int) -> Estimate:
        seen[k] = z.clone()
        x = to_x0(prediction, (z + 0.2 * path.logsnr[k]).sin(), z, torch.tensor([path.logsnr[k]], dtype=torch.float64))
        return Estimate(bound(x), (3 * z).cos() if learned else None)

    z = torch.linspace(-2, 2, 8, dtype=torch.float64).view(1, 2, 2, 2)
    found = solve(z, path, estimate, how, lambda k: torch.full_like(z, 0.3))
    return torch.cat((seen[MIDDLE].flatten(), found.flatten()))


def same(name: str, found: Tensor) -> None:
    assert found.tolist() == pytest.approx(PEER[name], rel=3e-4, abs=3e-5)


@pytest.mark.parametrize("cap", [1.5, 1.0])
def test_learned_variance_thresholding_and_a_named_spacing(cap: float) -> None:
    how = Diffusing(spacing="smart27")
    path = Path(levels(Schedule(kind="cosine-1000"), how))
    same(f"ddpm learned {cap}", drawn(path, how, "eps", lambda x: dynamic(x, 0.95, cap), learned=True))


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_fixed_variances(gamma: float) -> None:
    how = Diffusing(steps=25, gamma=gamma)
    same(f"ddpm gamma {gamma}", drawn(Path(levels(LINEAR, how)), how, "v", lambda x: x, learned=False))


@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim(eta: float) -> None:
    steps = torch.arange(950, -1, -50, dtype=torch.float64)
    path = Path(LINEAR.logsnr(steps / 1000).tolist())
    same(f"ddim {eta}", drawn(path, Diffusing(sampler="ddim", eta=eta), "eps", lambda x: x, learned=False))


def test_multistep_over_even_log_snrs() -> None:
    first, last = LINEAR.logsnr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    path = Path(torch.linspace(first, last, 15, dtype=torch.float64).tolist())
    same("dpm++", drawn(path, Diffusing(sampler="dpm++"), "x0", lambda x: x, learned=False))

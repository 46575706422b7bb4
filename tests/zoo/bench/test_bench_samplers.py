"""The table of samplers: its data are what it says they are, and more steps bring every sampler nearer to them."""

import math

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from zoo.bench import samplers
from zoo.diffusion.config import Schedule


def test_the_mixtures_quantiles_are_the_inverse_of_its_distribution() -> None:
    data = samplers.Mixture()
    x = data.quantiles((torch.arange(4000, dtype=torch.float64) + 0.5) / 4000)
    means, deviations = (torch.tensor(y, dtype=torch.float64) for y in (data.means, data.deviations))
    assert float(x.mean()) == pytest.approx(float(means.mean()), abs=1e-4)
    second = (means.square() + deviations.square()).mean()
    assert float(x.square().mean()) == pytest.approx(float(second), abs=1e-3)


def test_the_mixtures_denoiser_is_the_mean_of_x_given_z() -> None:
    """Beside an integral over x."""
    data, alpha, sigma = samplers.Mixture(), 0.6, 0.8
    x = torch.linspace(-3, 3, 200_001, dtype=torch.float64)
    density = torch.zeros_like(x)
    for mean, deviation in zip(data.means, data.deviations, strict=True):
        density += torch.exp(-(((x - mean) / deviation) ** 2) / 2) / deviation
    for z in (-1.0, 0.1, 0.9):
        joint: Tensor = density * torch.exp(-(((z - alpha * x) / sigma) ** 2) / 2)
        expected = torch.trapezoid(joint * x, x) / torch.trapezoid(joint, x)
        found = data.denoised(torch.tensor([z], dtype=torch.float64), alpha, sigma)
        assert float(found) == pytest.approx(float(expected), abs=1e-6)


def test_more_steps_are_nearer_and_the_second_order_is_nearest() -> None:
    found = samplers.table(Schedule(kind="edm"), (16, 64))
    assert set(found) == set(samplers.SAMPLERS)
    for errors in found.values():
        assert errors[1] < errors[0]
    last = {name: errors[1] for name, errors in found.items()}
    assert last["dpm++"] < last["heun"] < last["ddim"]


def test_rows_stand_beside_ddim_with_as_many_evaluations() -> None:
    found = samplers.rows((9,))
    assert len(found) == len(samplers.SAMPLERS) - 1
    assert len({row.peer for row in found}) == 1
    assert all(row.ratio == pytest.approx(row.peer / row.ours) and math.isfinite(row.ours) for row in found)
    for name, how in samplers.SAMPLERS.items():
        assert samplers.with_evaluations(how, 9).evaluations == 9, name


def test_the_table_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "EVALUATIONS", (8,))
    monkeypatch.setattr(samplers, "table", lambda schedule: {"ddim": [0.5], schedule.kind: [0.25]})
    result = CliRunner().invoke(samplers.main, ["--schedule", "linear"])
    assert result.exit_code == 0
    assert [line.split() for line in result.output.splitlines()] == [["8"], ["ddim", "0.50000"], ["linear", "0.25000"]]

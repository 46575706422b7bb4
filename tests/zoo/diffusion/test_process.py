"""Parameterisations say the same of one z, and thresholding keeps what it promises."""

import math

import pytest
import torch

from zoo.diffusion import process, threshold
from zoo.errors import ConfigError
from zoo.rng import Rng

LOGSNR = torch.tensor([-19.0, -6.0, 0.0, 3.0, 9.0], dtype=torch.float64)


def sample() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = Rng(0, range(len(LOGSNR)))
    x, eps = rng.uniform(3, 4, 4).double() * 2 - 1, rng.normal(3, 4, 4).double()
    return x, eps, process.noised(x, eps, LOGSNR)


def test_states_preserve_variance() -> None:
    alpha, sigma = process.alpha_sigma(LOGSNR, torch.zeros(5, 3, 4, 4, dtype=torch.float64))
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(alpha))
    assert torch.allclose((alpha / sigma).log().flatten() * 2, LOGSNR)
    for row, logsnr in enumerate(LOGSNR.tolist()):
        assert process.coefficients(logsnr) == pytest.approx((float(alpha[row]), float(sigma[row])), rel=1e-12)
    assert process.coefficients(math.inf) == (1, 0)
    assert process.coefficients(800.0)[1] == pytest.approx(math.exp(-400), rel=1e-9)
    assert process.coefficients(-800.0)[0] == pytest.approx(math.exp(-400), rel=1e-9)


@pytest.mark.parametrize("prediction", process.PREDICTIONS)
def test_conversions_round_trip(prediction: str) -> None:
    x, eps, z = sample()
    mean = process.target(prediction, x, eps, LOGSNR)
    said = prediction, mean, z, LOGSNR
    # Where alpha is 1e-4, ten digits of x are left of the fourteen.
    assert torch.allclose(process.to_x0(*said), x, atol=1e-9)
    assert torch.allclose(process.to_eps(*said), eps, atol=1e-9)
    assert torch.allclose(process.to_v(*said), process.target("v", x, eps, LOGSNR), atol=1e-9)
    assert torch.equal({"eps": process.to_eps, "v": process.to_v, "x0": process.to_x0}[prediction](*said), mean)


def test_half_precision_is_computed_in_fp32() -> None:
    x, eps, z = (y.to(torch.bfloat16) for y in sample())
    assert process.noised(x, eps, LOGSNR).dtype == torch.float32
    assert process.to_x0("eps", eps, z, LOGSNR).dtype == torch.float32


def test_an_unknown_prediction_is_named() -> None:
    x, eps, z = sample()
    for call in (process.to_x0, process.to_eps, process.to_v):
        with pytest.raises(
            ConfigError, match=r"prediction: must be one of eps, v, x0, not 'epz'; did you mean 'eps'\?"
        ):
            call("epz", eps, z, LOGSNR)
    with pytest.raises(ConfigError):
        process.target("noise", x, eps, LOGSNR)


def test_dynamic_threshold_stays_within_one_and_leaves_what_is_within() -> None:
    rng = Rng(1, range(6))
    wild = rng.normal(3, 8, 8) * torch.logspace(-1, 3, 6).view(-1, 1, 1, 1)
    for percentile in (0.5, 0.95, 0.995, 1.0):
        for cap in (None, 1.0, 1.5):
            found = threshold.dynamic(wild, percentile, cap)
            assert float(found.abs().max()) <= 1
            assert found.dtype == wild.dtype
    tame = rng.uniform(3, 8, 8) * 2 - 1
    assert torch.equal(threshold.dynamic(tame), tame)


def test_dynamic_threshold_is_the_definition() -> None:
    x = Rng(2, range(3)).normal(3, 5, 5) * torch.tensor([0.1, 1.0, 5.0]).view(-1, 1, 1, 1)
    for q, cap in ((0.9, None), (0.9, 1.5), (1.0, None), (0.0133, None)):
        s = torch.quantile(x.abs().flatten(1), q, dim=1).clamp(1, cap).view(-1, 1, 1, 1)
        assert torch.allclose(threshold.dynamic(x, q, cap), (x.clamp(-s, s) / s), atol=1e-6)


def test_dynamic_threshold_is_static_where_s_is_one_or_the_cap_is() -> None:
    x = Rng(3, range(2)).normal(3, 8, 8)
    assert not torch.equal(threshold.dynamic(x), threshold.static(x))
    assert torch.equal(threshold.dynamic(x, cap=1.0), threshold.static(x))
    assert torch.equal(threshold.dynamic(x, percentile=0.01), threshold.static(x))
    assert torch.equal(threshold.static(x), x.clamp(-1, 1))


def test_a_row_is_thresholded_alone() -> None:
    x = Rng(4, range(3)).normal(3, 8, 8) * 3
    assert torch.equal(threshold.dynamic(x)[1:2], threshold.dynamic(x[1:2]))


@pytest.mark.parametrize("q", [0.004, 0.3, 0.95, 0.995, 1.0])
def test_quantiles(q: float) -> None:
    rows = Rng(5, range(4)).normal(257).abs()
    assert torch.allclose(threshold.quantile(rows, q), torch.quantile(rows, q, dim=1), atol=1e-6)
    assert threshold.quantile(rows[:, :1], q).tolist() == rows[:, 0].tolist()

"""Losses against hand computed ones, in double precision, and the variational term against integrals."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from zoo.diffusion import laws, losses, tables, variational
from zoo.diffusion.config import Schedule
from zoo.diffusion.process import noised, target, to_eps, to_x0
from zoo.errors import ConfigError
from zoo.interfaces import Cond, Prediction
from zoo.rng import Rng

ROWS = 6


class Net:
    """Predicts a scaled z, and where asked a variance."""

    def __init__(self, prediction: str, schedule: Schedule, variance: float | None = None) -> None:
        self.prediction, self.schedule, self.bounded = prediction, schedule, True
        self.gain = torch.tensor(0.7, requires_grad=True)
        self.between = None if variance is None else torch.tensor(variance, requires_grad=True)
        self.asked: list[tuple[Tensor, Tensor]] = []

    def predict(self, z: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        self.asked.append((z, logsnr))
        return Prediction(self.gain * z, None if self.between is None else self.between.expand_as(z))


def picture() -> Tensor:
    return Rng(9, range(ROWS)).uniform(3, 4, 4) * 2 - 1


def drawn(x: Tensor, schedule: Schedule, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss draws, once more and in double precision."""
    at = losses.levels(schedule, rng.fork("time"))
    eps = rng.fork("noise").normal(*x.shape[1:]).double()
    return at.logsnr, eps, noised(x.double(), eps, at.logsnr)


@pytest.mark.parametrize("kind", ["cosine", "linear-1000"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("weighting", ["eps", "v", "x0", "min-snr"])
def test_the_loss_is_the_weighted_error_of_the_picture(kind: str, prediction: str, weighting: Any) -> None:
    net, x, rng = Net(prediction, Schedule(kind=kind)), picture(), Rng(1, range(ROWS))  # type: ignore[arg-type]
    found = losses.denoising(net, x, Cond(), rng=rng, weighting=weighting)
    logsnr, eps, z = drawn(x, net.schedule, rng)
    said = prediction, 0.7 * z, z, logsnr
    snr = logsnr.exp()
    of_x = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr), "min-snr": snr.clamp(max=5)}[weighting]
    expected = of_x * (to_x0(*said) - x.double()).square().flatten(1).mean(1)
    assert found["loss"].item() == pytest.approx(float(expected.mean()), rel=1e-4)
    if weighting == "eps":
        error = (to_eps(*said) - eps).square().flatten(1).mean(1)
        assert found["loss"].item() == pytest.approx(float(error.mean()), rel=1e-4)
    native = (0.7 * z - target(prediction, x.double(), eps, logsnr)).square().mean()
    assert float(found["mse"]) == pytest.approx(float(native), rel=1e-5)
    assert set(found) == {"loss", "mse"}


def test_by_hand() -> None:
    """One pixel: logsnr 0 makes z = (x + eps) / sqrt 2; predicting 0.7 z of eps."""
    net, x = Net("eps", Schedule(kind="edm", logsnr_min=-1e-9, logsnr_max=1e-9)), torch.full((1, 1, 1, 1), 0.5)
    found = losses.denoising(net, x, Cond(), rng=Rng(4, [0]))
    eps = float(Rng(4, [0]).fork("noise").normal(1, 1, 1))
    assert found["loss"].item() == pytest.approx((0.7 * (0.5 + eps) / math.sqrt(2) - eps) ** 2, rel=1e-5)


def test_weights_are_the_published_ones() -> None:
    logsnr = torch.tensor([-3.0, 0.0, 1.0, 4.0], dtype=torch.float64)
    snr = logsnr.exp()
    assert torch.equal(losses.weight("eps", "eps", logsnr), torch.ones(4))
    assert torch.allclose(losses.weight("min-snr", "eps", logsnr), snr.clamp(max=5) / snr)
    assert torch.allclose(losses.weight("min-snr", "v", logsnr), snr.clamp(max=5) / (snr + 1))
    assert torch.allclose(losses.weight("min-snr", "x0", logsnr, snr_max=2), snr.clamp(max=2))
    with pytest.raises(ConfigError, match="weighting: must be one of eps, v, x0, min-snr, not 'minsnr'; did you mean"):
        losses.weight("minsnr", "eps", logsnr)  # type: ignore[arg-type]


def test_rows_depend_on_their_keys_alone() -> None:
    net, x = Net("v", Schedule()), picture()
    whole = losses.denoising(net, x, Cond(), rng=Rng(1, range(ROWS)))["loss"]
    parts = [
        losses.denoising(net, x[i : i + 2], Cond(), rng=Rng(1, range(i, i + 2)))["loss"] for i in range(0, ROWS, 2)
    ]
    assert whole.item() == pytest.approx(sum(part.item() for part in parts) / 3, rel=1e-6)
    assert torch.allclose(net.asked[0][0][2:4], net.asked[2][0])


def test_levels_are_even() -> None:
    u = Schedule().time(losses.levels(Schedule(), Rng(0, range(20_000))).logsnr)
    assert float(u.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(u.var()) == pytest.approx(1 / 12, rel=0.03)
    table = Schedule(kind="cosine-1000")
    k = (table.time(losses.levels(table, Rng(0, range(20_000))).logsnr) * 1000).round().long()
    assert torch.bincount(k // 100, minlength=10).sub(2000).abs().max() < 200
    assert (int(k.min()), int(k.max())) == (0, 999)


def test_a_network_of_half_precision_has_its_loss_in_fp32() -> None:
    net, x = Net("eps", Schedule()), picture()
    plain = losses.denoising(net, x, Cond(), rng=Rng(1, range(ROWS)))
    net.predict = lambda z, logsnr, cond: Prediction((0.7 * z).bfloat16())  # type: ignore[method-assign]
    half = losses.denoising(net, x, Cond(), rng=Rng(1, range(ROWS)))
    assert half["loss"].dtype == torch.float32
    assert half["loss"].item() == pytest.approx(plain["loss"].item(), rel=0.01)


def at_steps(schedule: Schedule, k: Tensor) -> losses.Levels:
    upper = k.clamp(min=1)
    return losses.Levels(
        laws.at_step(schedule, k), k == 0, laws.at_step(schedule, upper), laws.at_step(schedule, upper - 1)
    )


def test_levels_of_a_table_are_steps_and_those_below_them() -> None:
    table = Schedule(kind="linear-1000")
    at = losses.levels(table, Rng(0, range(20_000)))
    k = (table.time(at.logsnr) * 1000).round().long()
    expected = at_steps(table, k)
    assert (k == 0).any()
    assert (k == 1).any()
    for name in ("logsnr", "lowest", "upper", "lower"):
        assert torch.equal(getattr(at, name), getattr(expected, name)), name


def test_the_variational_term_is_a_divergence() -> None:
    """Beside an integral of q log(q / p), of q and p from betas: Ho et al., eq. (7); Nichol and Dhariwal, eq. (15)."""
    kept = (1 - torch.tensor(tables.linear_betas(1000), dtype=torch.float64)).cumprod(0)
    steps = torch.tensor([1, 2, 300, 999])
    x, estimate, between = (torch.full((4, 1, 1, 1), value, dtype=torch.float64) for value in (0.4, 0.1, 0.3))
    found = variational.bits(x, estimate, between, at_steps(Schedule(kind="linear-1000"), steps))
    for row, k in enumerate(steps.tolist()):
        bar, bar_before = kept[k], kept[k - 1]
        beta = 1 - bar / bar_before
        posterior = beta * (1 - bar_before) / (1 - bar)
        variance = math.exp(0.65 * math.log(beta) + 0.35 * math.log(posterior))
        apart = float(bar_before.sqrt() * beta / (1 - bar)) * 0.3
        y = torch.linspace(-12, 12, 200_001, dtype=torch.float64) * float(posterior.sqrt())
        log_q = -(y**2) / (2 * posterior) - 0.5 * torch.log(2 * math.pi * posterior)
        log_p = -((y + apart) ** 2) / (2 * variance) - 0.5 * math.log(2 * math.pi * variance)
        integral = torch.trapezoid(log_q.exp() * (log_q - log_p), y) / math.log(2)
        assert float(found[row]) == pytest.approx(float(integral), rel=1e-6)


def test_the_lowest_step_is_a_likelihood_that_sums_to_one() -> None:
    """Over the 256 values of a pixel, of any estimate and variance."""
    values = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1, 1, 1)
    at = at_steps(Schedule(kind="cosine-1000"), torch.zeros(256, dtype=torch.int64))
    for estimate, between in ((0.2, -1.0), (-0.999, 0.5), (1.2, 1.0)):
        same = torch.full_like(values, estimate), torch.full_like(values, between)
        bits = variational.bits(values, *same, at)
        # Of what is off by many deviations, 1e-12 is said instead of nothing.
        assert float((-bits * math.log(2)).exp().sum()) == pytest.approx(1, abs=1e-9)
    in_fp32 = variational.bits(values.float(), *(y.float() for y in same), at)
    assert torch.allclose(in_fp32.double(), bits, rtol=1e-4, atol=1e-4)


def test_the_lowest_steps_variance_has_public_bounds() -> None:
    """Between the posterior's of the step above and the first beta, as where the former would be nothing."""
    betas = tables.cosine_betas(1000)
    bar = (1 - betas[0]) * (1 - betas[1])
    low, high = betas[1] * betas[0] / (1 - bar), betas[0]
    x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
    at = at_steps(Schedule(kind="cosine-1000"), torch.zeros(1, dtype=torch.int64))
    for between, variance in ((-1.0, low), (1.0, high)):
        bits = variational.bits(x, x, torch.full_like(x, between), at)
        inside = math.erf(1 / 255 / math.sqrt(2 * variance))
        assert float(bits) == pytest.approx(-math.log2(inside), rel=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "cosine-1000"])
def test_a_variance_is_taught_and_the_mean_is_left_alone(kind: str) -> None:
    x, rng = picture(), Rng(2, range(ROWS))
    plain, taught = Net("eps", Schedule(kind=kind)), Net("eps", Schedule(kind=kind), variance=0.2)  # type: ignore[arg-type]
    without, found = (losses.denoising(net, x, Cond(), rng=rng) for net in (plain, taught))
    assert found["loss"].item() == pytest.approx((without["loss"] + found["vlb"]).item(), rel=1e-6)
    half = losses.denoising(taught, x, Cond(), rng=rng, vlb=0.5)
    assert half["loss"].item() == pytest.approx((without["loss"] + found["vlb"] / 2).item(), rel=1e-6)
    for loss in (without["loss"], found["loss"]):
        loss.backward()
    assert taught.between is not None
    assert taught.between.grad is not None
    assert float(taught.between.grad.abs()) > 0
    assert torch.equal(taught.gain.grad, plain.gain.grad)  # type: ignore[arg-type]
    assert not found["vlb"].requires_grad


@pytest.mark.parametrize("kind", ["cosine-1000", "cosine-4000", "linear-1000"])
def test_the_bound_counts_all_steps_of_a_table(kind: str) -> None:
    """0.001 of a sum over N steps, of which one is drawn; Nichol and Dhariwal, section 3.4."""
    x, rng = picture(), Rng(2, range(ROWS))
    schedule = Schedule(kind=kind)  # type: ignore[arg-type]
    without, found = (losses.denoising(Net("eps", schedule, v), x, Cond(), rng=rng) for v in (None, 0.2))
    assert schedule.steps is not None
    whole = schedule.steps * found["vlb"].item()
    assert found["loss"].item() - without["loss"].item() == pytest.approx(0.001 * whole, rel=1e-5)


class Law:
    """The cosine law that the tables are cut from: kept signal over that at time 0."""

    steps = None

    def logsnr(self, t: Tensor) -> Tensor:
        kept = [torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2 for u in (t, torch.zeros_like(t))]
        return torch.log(kept[0] / (kept[1] - kept[0]))


@pytest.mark.parametrize("law", [Law(), Schedule()])
def test_the_term_of_a_law_is_that_of_its_table(law: Any) -> None:
    """At u = (k + 1) / 1000, the lowest step included; but for the last one's beta, which the table caps."""
    k = torch.arange(999)
    u = (k.double() + 1) / losses.PIECES
    own = losses.levels(law, SimpleNamespace(uniform=lambda device: u))  # type: ignore[arg-type]
    table = at_steps(Schedule(kind="cosine-1000"), k)
    assert torch.equal(own.lowest, table.lowest)
    assert int(own.lowest.sum()) == 1
    x = torch.full((999, 1, 1, 1), 0.4, dtype=torch.float64)
    for error, between in ((0.01, 0.3), (0.1, -1.0)):
        bits = [variational.bits(x, x - error, torch.full_like(x, between), at) for at in (own, table)]
        if isinstance(law, Law):
            assert torch.allclose(*bits, rtol=1e-6, atol=0)
        else:  # the law keeps 1.6e-4 of noise at time 0
            assert torch.allclose(*(each[100:] for each in bits), rtol=0.02, atol=0)
            assert bits[0].isfinite().all()


def test_a_law_is_divided_into_a_thousand_steps_wherever_they_begin() -> None:
    law = Schedule()
    at = losses.levels(law, Rng(0, range(5000)))
    u = Rng(0, range(5000)).uniform().double()
    assert torch.allclose(at.logsnr, law.logsnr(u))
    assert torch.equal(at.lowest, u <= 1e-3)
    assert at.lowest.any()
    inside = ~at.lowest
    assert torch.equal(at.upper[inside], at.logsnr[inside])
    assert torch.allclose(at.lower[inside], law.logsnr(u - 1e-3)[inside])
    assert torch.allclose(at.upper[at.lowest], law.logsnr(torch.tensor(2e-3, dtype=torch.float64)))


def test_where_a_clamp_makes_two_levels_one_there_is_nothing_to_learn() -> None:
    law = Schedule(logsnr_min=2.0, logsnr_max=3.0)
    at = losses.levels(law, Rng(0, range(500)))
    x = torch.full((500, 1, 1, 1), 0.4, dtype=torch.float64)
    bits = variational.bits(x, x - 0.1, torch.full_like(x, 0.5), at)
    flat = ~at.lowest & (at.upper == at.lower)
    assert int(flat.sum()) > 100
    assert float(bits[flat].abs().max()) < 1e-9
    assert bits.isfinite().all()

"""What `draw` asks of a denoiser, and what it promises of rows, guidance, given pictures and refusals."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from zoo.diffusion import draw
from zoo.diffusion.config import Diffusing, Schedule
from zoo.diffusion.process import noised, to_x0
from zoo.diffusion.sampling import levels
from zoo.errors import ConfigError
from zoo.interfaces import Cond, Prediction
from zoo.rng import Rng

Make = Callable[..., Any]
SHAPE = (2, 3, 4)
SAMPLERS = ("ddpm", "ddim", "dpm++", "heun")
every = pytest.mark.parametrize("sampler", SAMPLERS)


def how(sampler: Any = "ddim", **more: Any) -> Diffusing:
    return Diffusing(**{"sampler": sampler, "steps": 6, "threshold": "off", **more})


@every
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_every_parameterisation_is_sampled_alike(exact: Make, sampler: str, prediction: str) -> None:
    said = [exact(prediction=p) for p in ("x0", prediction)]
    one, two = (draw(net, Cond(), SHAPE, how(sampler), Rng(0, range(3))) for net in said)
    assert torch.allclose(one, two, atol=2e-3)  # where alpha is 5e-5, few digits of x are left in eps
    assert one.shape == (3, *SHAPE)
    assert one.dtype == torch.float32


@every
def test_rows_depend_on_their_keys_alone(exact: Make, sampler: str) -> None:
    whole = draw(exact(), Cond(), SHAPE, how(sampler, gamma=0.3), Rng(7, range(5)))
    assert torch.equal(whole, draw(exact(), Cond(), SHAPE, how(sampler, gamma=0.3), Rng(7, range(5))))
    assert torch.allclose(whole[1:3], draw(exact(), Cond(), SHAPE, how(sampler, gamma=0.3), Rng(7, [1, 2])), atol=1e-6)
    assert not torch.allclose(whole, draw(exact(), Cond(), SHAPE, how(sampler, gamma=0.3), Rng(8, range(5))), atol=0.1)


def test_deterministic_samplers_and_ancestral_start_alike_and_only_noise_parts_them(exact: Make) -> None:
    nets = [exact(), exact()]
    for net, sampler in zip(nets, ("ddim", "ddpm"), strict=True):
        draw(net, Cond(), SHAPE, how(sampler), Rng(0, range(2)))
    assert torch.equal(nets[0].asked[0][0], nets[1].asked[0][0])
    assert not torch.allclose(nets[0].asked[1][0], nets[1].asked[1][0])


@every
def test_progress_counts_what_the_network_is_asked(exact: Make, sampler: str) -> None:
    net, heard = exact(), []
    draw(net, Cond(), SHAPE, how(sampler), Rng(0, range(2)), progress=heard.append)
    assert len(net.asked) == len(heard) == sum(heard) == how(sampler).evaluations


def test_nothing_global_is_touched_and_no_gradient_is_kept(exact: Make) -> None:
    before = torch.get_rng_state()
    found = draw(exact(), Cond(), SHAPE, how("ddpm"), Rng(0, range(2)))
    assert torch.equal(before, torch.get_rng_state())
    assert not found.requires_grad
    assert not found.is_inference()


def test_levels_of_a_law_end_one_step_before_clean() -> None:
    schedule = Schedule()
    times = schedule.time(torch.tensor(levels(schedule, how(steps=4)), dtype=torch.float64))
    start = float(schedule.time(torch.tensor(-20.0, dtype=torch.float64)))
    assert times.tolist() == pytest.approx([start, 0.75 * start, 0.5 * start, 0.25 * start], abs=1e-9)


def test_levels_of_edm_are_the_papers() -> None:
    found = levels(Schedule(kind="edm"), how(steps=18))
    sigma = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    assert (torch.tensor(found).double() / -2).exp().tolist() == pytest.approx(sigma, rel=1e-5)


def test_levels_of_a_clamped_law_differ() -> None:
    found = levels(Schedule(logsnr_min=-5, logsnr_max=3), how(steps=20))
    assert found[0] == pytest.approx(-5)
    assert found[-1] < 3
    assert len(set(found)) == 20


def test_levels_of_a_table_are_the_visited_steps() -> None:
    table = Schedule(kind="cosine-1000")
    for settings, steps in (({"steps": 5}, [999, 749, 500, 250, 0]), ({"spacing": "2,1"}, [500, 499, 0])):
        found = torch.tensor(levels(table, how(**settings)), dtype=torch.float64)
        assert (table.time(found) * 1000).round().long().tolist() == steps
    assert len(levels(table, how(spacing="fast27"))) == 27


def test_the_systems_schedule_goes_before_the_denoisers(exact: Make) -> None:
    net = exact(schedule=Schedule(kind="linear-1000"))
    draw(net, Cond(), SHAPE, how(schedule=Schedule(kind="edm")), Rng(0, range(2)))
    assert float(net.asked[0][1][0]) == pytest.approx(-2 * torch.tensor(80.0).log().item())
    assert net.asked[0][1].shape == (2,)


def test_guidance_of_one_and_none_are_the_conditional_and_the_null_prediction(reads: Make) -> None:
    cond = Cond(label=torch.tensor([2, -1]))
    seen = {}
    for guidance in (0.0, 1.0, 3.0):
        net = reads()
        seen[guidance] = draw(net, cond, SHAPE, how(guidance=guidance), Rng(0, range(2)))
        assert {len(z) for z, _ in net.asked} == {4 if guidance == 3 else 2}
        assert len(net.asked) == 6
    null = draw(reads(), Cond(label=torch.zeros(2)), SHAPE, how(), Rng(0, range(2)))
    assert torch.allclose(seen[0.0], null, atol=1e-5)
    # The estimate is affine in the label, so guidance scales what the label adds.
    assert torch.allclose(seen[3.0] - null, 3 * (seen[1.0] - null), atol=1e-3)
    assert float((seen[1.0] - null).abs().min()) > 0.5


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_guidance_means_the_same_in_every_parameterisation(reads: Make, prediction: str) -> None:
    cond = Cond(label=torch.tensor([2, -1]))
    one, two = (draw(reads(prediction=p), cond, SHAPE, how(guidance=2.5), Rng(0, range(2))) for p in ("x0", prediction))
    assert torch.allclose(one, two, atol=5e-3)


def test_rows_that_are_dropped_stay_so_under_guidance(reads: Make) -> None:
    cond = Cond(label=torch.tensor([2, 2]), drop=torch.tensor([True, False]))
    found = draw(reads(), cond, SHAPE, how(guidance=4.0), Rng(0, [0, 0]))
    null = draw(reads(), Cond(label=torch.zeros(1)), SHAPE, how(), Rng(0, [0]))
    assert torch.allclose(found[:1], null, atol=1e-5)
    assert not torch.allclose(found[1:], null, atol=0.5)


def test_guidance_keeps_the_conditional_variance(reads: Make) -> None:
    net, plain = reads(), reads()

    def predict(z: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        drop = torch.zeros(len(z)) if cond.drop is None else cond.drop.float()
        return Prediction(plain.predict(z, logsnr, cond).mean, (2 * drop - 1).view(-1, 1, 1, 1).expand_as(z))

    net.predict = predict
    cond = Cond(label=torch.zeros(2))
    found = draw(net, cond, SHAPE, how("ddpm", guidance=2.0, gamma=0.9), Rng(0, range(2)))
    assert torch.allclose(found, draw(plain, cond, SHAPE, how("ddpm", gamma=0.0), Rng(0, range(2))), atol=1e-4)


def test_a_denoiser_may_be_told_its_condition_once(reads: Make) -> None:
    told: list[Cond] = []
    net = reads()

    def conditioned(cond: Cond) -> Callable[[Tensor, Tensor], Prediction]:
        told.append(cond)
        return lambda z, logsnr: reads().predict(z, logsnr, cond)

    cond = Cond(label=torch.tensor([2, -1]))
    plain = draw(net, cond, SHAPE, how(guidance=2.0), Rng(0, range(2)))
    net.conditioned, net.predict = conditioned, None
    assert torch.equal(plain, draw(net, cond, SHAPE, how(guidance=2.0), Rng(0, range(2))))
    assert len(told) == 1
    assert told[0].drop is not None
    assert told[0].drop.tolist() == [False, False, True, True]


@pytest.mark.parametrize("threshold", ["static", "dynamic"])
def test_thresholding_applies_where_the_latent_is_bounded_only(exact: Make, threshold: str) -> None:
    for bounded in (True, False):
        net = exact(mean=0.0, deviation=3.0, bounded=bounded)
        found = draw(net, Cond(), SHAPE, how(threshold=threshold), Rng(0, range(4)))
        assert (float(found.abs().max()) <= 1) is bounded
    free = draw(exact(mean=0.0, deviation=3.0, bounded=True), Cond(), SHAPE, how(), Rng(0, range(4)))
    assert float(free.abs().max()) > 1


def test_dynamic_thresholding_reads_its_percentile_and_cap(exact: Make) -> None:
    found = [
        draw(exact(deviation=3.0, bounded=True), Cond(), SHAPE, how(threshold="dynamic", **more), Rng(0, range(4)))
        for more in ({}, {"percentile": 0.5}, {"cap": 1.0})
    ]
    static = draw(exact(deviation=3.0, bounded=True), Cond(), SHAPE, how(threshold="static"), Rng(0, range(4)))
    assert torch.equal(found[2], static)
    assert not torch.allclose(found[0], static, atol=0.05)
    assert not torch.allclose(found[0], found[1], atol=0.05)


@every
def test_a_known_region_is_kept_to_the_bit_and_the_rest_is_drawn(exact: Make, sampler: str) -> None:
    z0 = Rng(5, range(3)).uniform(*SHAPE) * 2 - 1
    mask = Rng(6, range(3)).uniform(1, *SHAPE[1:]) < 0.5
    net = exact(bounded=True)
    found = draw(net, Cond(), SHAPE, how(sampler, threshold="static"), Rng(0, range(3)), known=(z0, mask))
    kept = mask.expand_as(z0)
    assert torch.equal(found[kept], z0[kept])
    free = draw(exact(bounded=True), Cond(), SHAPE, how(sampler, threshold="static"), Rng(0, range(3)))
    assert float((found - z0)[~kept].abs().min()) > 1e-4
    # This denoiser looks at one number at a time, so what is known next to it changes nothing.
    assert torch.allclose(found[~kept], free[~kept], atol=1e-6)


@every
def test_on_the_way_a_known_region_is_the_known_picture_noised(exact: Make, sampler: str) -> None:
    """What the network sees there has alpha z0 for its mean and sigma for its deviation."""
    net, z0 = exact(), torch.full((4000, 1, 1, 2), 0.8)
    mask = torch.tensor([True, False]).view(1, 1, 1, 2).expand(4000, 1, 1, 2)
    draw(net, Cond(), (1, 1, 2), how(sampler), Rng(0, range(4000)), known=(z0, mask))
    for z, logsnr in net.asked:
        seen, snr = z[..., 0].double(), logsnr[0].double()
        assert float(seen.mean()) == pytest.approx(0.8 * float(snr.sigmoid().sqrt()), abs=0.08)
        assert float(seen.var()) == pytest.approx(float((-snr).sigmoid()), rel=0.12)


@every
def test_a_start_and_a_known_region_go_together(exact: Make, sampler: str) -> None:
    net, z0, other = exact(), torch.full((3, *SHAPE), 0.8), torch.full((3, *SHAPE), -0.5)
    mask = (torch.arange(4) < 2).expand(3, 1, 3, 4)
    found = draw(net, Cond(), SHAPE, how(sampler), Rng(0, range(3)), start=(other, 0.5), known=(z0, mask))
    first, logsnr = net.asked[0]
    noise = Rng(0, range(3)).fork("noise").normal(*SHAPE)
    assert torch.allclose(first, noised(torch.where(mask, z0, other), noise, logsnr), atol=1e-5)
    assert torch.equal(found[..., :2], z0[..., :2])


def test_starting_from_a_picture_begins_there(exact: Make) -> None:
    z0 = Rng(5, range(3)).uniform(*SHAPE) * 2 - 1
    net, schedule = exact(), Schedule()
    draw(net, Cond(), SHAPE, how(), Rng(0, range(3)), start=(z0, 0.5))
    logsnr = schedule.logsnr(torch.full((3,), 0.5))
    assert len(net.asked) == 3
    assert torch.allclose(net.asked[0][1], logsnr, atol=1e-5)
    noise = Rng(0, range(3)).fork("noise").normal(*SHAPE)
    assert torch.allclose(net.asked[0][0], noised(z0, noise, logsnr), atol=1e-5)


def test_the_less_noise_the_more_is_left_of_the_start(exact: Make) -> None:
    z0 = Rng(5, range(64)).uniform(*SHAPE) * 2 - 1
    apart = [
        float((draw(exact(), Cond(), SHAPE, how(steps=20), Rng(0, range(64)), start=(z0, t)) - z0).square().mean())
        for t in (0.05, 0.3, 0.6, 1.0)
    ]
    assert apart == sorted(apart)
    assert apart[0] < 0.01
    table = exact(schedule=Schedule(kind="linear-1000"))
    draw(table, Cond(), SHAPE, how(steps=20), Rng(0, range(64)), start=(z0, 0.3))
    steps = (table.schedule.time(torch.stack([logsnr[0] for _, logsnr in table.asked])) * 1000).round()
    assert steps.tolist() == [315, 263, 210, 158, 105, 53, 0]


@pytest.mark.parametrize(
    ("strength", "steps"),
    [
        (1e-6, [250, 0]),
        (0.25, [250, 0]),
        (0.251, [500, 250, 0]),
        (0.9, [999, 749, 500, 250, 0]),
        (1.0, [999, 749, 500, 250, 0]),
    ],
)
def test_a_table_is_entered_at_the_lowest_visited_step_that_is_not_below(strength: float, steps: list[int]) -> None:
    table = Schedule(kind="cosine-1000")
    found = table.time(torch.tensor(levels(table, how(steps=5), strength), dtype=torch.float64))
    assert (found * 1000).round().long().tolist() == steps


def test_a_visited_step_is_entered_itself_whatever_its_time_rounds_to() -> None:
    """0.07 * 1000 is 70.00000000000001."""
    table = Schedule(kind="linear-1000")
    found = [float(table.time(torch.tensor(levels(table, how(steps=1000), k / 1000)[0]))) for k in (7, 70, 570, 999)]
    assert found == pytest.approx([0.007, 0.07, 0.57, 0.999])


def test_a_spacing_that_ends_below_the_time_is_entered_at_its_end() -> None:
    found = levels(Schedule(kind="cosine-1000"), how(spacing="2,1"), 0.8)
    assert found == levels(Schedule(kind="cosine-1000"), how(spacing="2,1"))


def test_double_precision_is_kept(exact: Make) -> None:
    z0 = torch.zeros(2, *SHAPE, dtype=torch.float64)
    assert draw(exact(), Cond(), SHAPE, how("ddpm"), Rng(0, range(2)), start=(z0, 0.5)).dtype == torch.float64
    half = exact()
    half.predict = lambda z, logsnr, cond: Prediction((0.5 * z).bfloat16())
    assert draw(half, Cond(), SHAPE, how(), Rng(0, range(2))).dtype == torch.float32


def test_a_module_says_where_it_works() -> None:
    class Net(nn.Module):
        prediction, bounded, schedule = "x0", False, Schedule()

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(0.5, device="meta"))

    from zoo.diffusion.sampling import device_of

    assert device_of(Net(), Cond(label=torch.zeros(2))).type == "meta"
    assert device_of(SimpleNamespace(), Cond(label=torch.zeros(2, device="meta"))).type == "meta"
    assert device_of(SimpleNamespace(), Cond()).type == "cpu"


def refused(make: Callable[[], Any]) -> str:
    with pytest.raises(ConfigError) as refusal:
        make()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_refusals(exact: Make, reads: Make) -> None:
    rng, cond = Rng(0, range(2)), Cond(label=torch.zeros(2))
    z0, mask = torch.zeros(2, *SHAPE), torch.ones(2, 1, *SHAPE[1:], dtype=torch.bool)

    def said(net: Any, settings: Diffusing, **more: Any) -> str:
        return refused(lambda: draw(net, cond, SHAPE, settings, rng, **more))

    undropped = "guidance: 7.5 needs a denoiser trained with cond_drop > 0; this one has cond_drop = 0, so take 1"
    assert said(reads(cond_drop=0), how(guidance=7.5)) == undropped
    assert said(exact(), how(guidance=7.5)) == undropped
    continuous = said(exact(), how(spacing="fast27"))
    assert continuous.startswith("spacing: 'fast27' chooses among discrete steps, and the schedule 'cosine' has none")
    table = exact(schedule=Schedule(kind="linear-1000"))
    assert said(table, how(steps=1001)) == "steps: 1001 are more than the 1000 of the noise schedule"
    assert said(table, how(spacing="900,3")) == "spacing: 900 are more than the 500 steps of section 1 of 2"
    assert said(exact(prediction="epsilon"), how()).startswith("prediction: must be one of eps, v, x0, not 'epsilon'")
    for time in (0.0, 1.5, float("nan")):
        assert said(exact(), how(), start=(z0, time)).startswith("start: its time must be in (0, 1], not")
    assert said(exact(), how(), start=(z0[:, :1], 0.5)) == "start: must have shape [2, 2, 3, 4], not [2, 1, 3, 4]"
    assert said(exact(), how(), known=(z0[:1], mask)) == "known: must have shape [2, 2, 3, 4], not [1, 2, 3, 4]"
    wrong = said(exact(), how(), known=(z0, mask.float()))
    assert wrong == "known: its mask must be bool of shape [2, 1, 3, 4], not torch.float32 [2, 1, 3, 4]"


def test_what_a_sampler_ends_with_is_its_last_estimate(exact: Make) -> None:
    net = exact(bounded=True)
    found = draw(net, Cond(), SHAPE, attrs.evolve(how("heun"), threshold="static"), Rng(0, range(2)))
    z, logsnr = net.asked[-1]
    mean = exact().predict(z, logsnr, Cond()).mean
    assert torch.allclose(found, to_x0("eps", mean, z, logsnr).clamp(-1, 1), atol=1e-5)

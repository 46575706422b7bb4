"""Per-resblock gradient scaling: the step of the torch engine, and whole models. The law has a file of its own."""

import copy
import logging

import attrs
import pytest
import torch
from torch import nn
from train_fakes import WIDTH, FakePrior, FakeSystem, engine, job

from zoo.errors import ConfigError
from zoo.interfaces import Grad
from zoo.nn import Residual
from zoo.nn.residual import checkpoint_branches, residuals
from zoo.parts import Recipe
from zoo.testing.kit import case_of
from zoo.train import resblock
from zoo.train.loop import Diverged, train, update
from zoo.train.metrics import read_rows
from zoo.train.resblock import Scales
from zoo.train.stage import Stage

RECIPE = Recipe(lr=1e-2, batch=8, steps=12, schedule="constant", ema=0.9)


class Bad(torch.autograd.Function):
    """The identity, whose backward pass puts a value into the first place of the gradient."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad.view(-1)[0] = ctx.value
        return grad, None


class Branch(nn.Sequential):
    """A branch whose gradient can be spoilt."""

    spoilt = None

    def __init__(self):
        super().__init__(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, x):
        y = super().forward(x)
        return y if self.spoilt is None else Bad.apply(y, self.spoilt)


class DeepPrior(FakePrior):
    """The fake prior with three residual sums."""

    def __init__(self, recipe=None):
        super().__init__(recipe)
        self.block = nn.Sequential(*(Residual(Branch()) for _ in range(3)))


BLOCKS = tuple(f"prior.block.{i}" for i in range(3))


class DeepSystem(FakeSystem):
    def __init__(self, recipe=None, seed=0):
        super().__init__(recipe, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed + 1)
            self.parts["prior"] = DeepPrior(recipe)


def scaled_job(folder, recipe=RECIPE, seed=0):
    """A prepared job on the deep system in resblock precision."""
    running = job(folder, recipe, system=DeepSystem(recipe, seed))
    made = engine(precision="resblock")
    made.prepare(running.stage, recipe, steps=recipe.steps)
    return attrs.evolve(running, engine=made)


def branch(running, i):
    return running.generator.parts["prior"].block[i].branch


def state(running):
    """Every bit that an update may change, but for the scales."""
    made = running.engine
    found = {name: x.clone() for name, x in made.stage.state_dict().items()}
    found |= {f"average {name}": x.clone() for name, x in made._ema.average.items()}
    for i, moments in enumerate(made._optimizer.state.values()):
        found |= {f"{i} {name}": torch.as_tensor(x).clone() for name, x in moments.items()}
    return found


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def scales_of(row):
    return [row[f"scale/{name}"] for name in BLOCKS]


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_an_overflow_in_one_block_divides_its_scale_alone_and_skips_the_update(tmp_path, value, caplog):
    caplog.set_level(logging.INFO)
    running = scaled_job(tmp_path)
    row = update(running, running.feed.at(0), 0)
    assert row["skipped"] == 0.0
    assert scales_of(row) == [13.001] * 3
    before = state(running)
    branch(running, 1).spoilt = value
    row = update(running, running.feed.at(1), 1)
    assert row["skipped"] == 1.0
    assert scales_of(row) == [13.001, 12.501, 13.001]
    assert same(before, state(running))
    assert caplog.text.count("prior.block.1: a gradient overflowed; its scale falls to 2^12.501") == 1
    row = update(running, running.feed.at(2), 2)  # within the guard
    assert scales_of(row) == [13.001, 12.501, 13.001]
    branch(running, 1).spoilt = None
    row = update(running, running.feed.at(3), 3)
    assert row["skipped"] == 0.0
    assert scales_of(row) == [13.002, 12.502, 13.002]
    assert not same(before, state(running))


def test_a_scale_that_is_too_large_overflows_and_falls_by_itself(tmp_path):
    """No injection: from 2^40 on, products overflow until the scale is where fp16 holds them."""
    recipe = attrs.evolve(RECIPE, steps=400)
    running = scaled_job(tmp_path, recipe)
    scales = running.engine.scales
    scales._law[2], scales._since[2] = 40_000, resblock.GUARD
    scales._publish()
    rows = []
    for step in range(3):
        scales._since[2] = resblock.GUARD  # no waiting
        rows.append(update(running, running.feed.at(step), step))
    assert [row["skipped"] for row in rows] == [1.0] * 3
    assert [row["scale/prior.block.2"] for row in rows] == [39.5, 39.0, 38.5]
    assert [row["scale/prior.block.0"] for row in rows] == [13.0] * 3
    scales._law[2] = 16_000
    scales._publish()
    assert update(running, running.feed.at(3), 3)["skipped"] == 0.0


def test_training_waits_for_a_falling_scale_and_for_nothing_else(tmp_path):
    running = scaled_job(tmp_path / "a", attrs.evolve(RECIPE, steps=30))
    branch(running, 0).spoilt = float("inf")
    train(running, 0)
    rows = read_rows(tmp_path / "a" / "metrics.jsonl")
    assert [row["settling"] for row in rows] == [1.0] * 30, "more in a row than are borne otherwise"
    running.engine.scales._law[0] = resblock.LOWEST
    with pytest.raises(Diverged, match="the last 10 updates"):
        train(attrs.evolve(running, recipe=attrs.evolve(RECIPE, steps=60)), 30)
    hopeless = scaled_job(tmp_path / "b", attrs.evolve(RECIPE, steps=30))
    hopeless.generator.parts["prior"].poison = lambda step: step >= 1
    with pytest.raises(Diverged, match="the last 10 updates up to step 11"):
        train(hopeless, 0)


def test_a_loss_that_is_infinite_is_not_waited_for(tmp_path):
    """Its gradients are finite, so no scale is to blame, and none moves."""
    running = scaled_job(tmp_path, attrs.evolve(RECIPE, steps=30))
    prior = running.generator.parts["prior"]
    plain = prior.loss
    prior.loss = lambda *a, **more: {"loss": plain(*a, **more)["loss"] + float("inf")}
    with pytest.raises(Diverged, match="the last 10 updates up to step 10"):
        train(running, 0)
    assert set(running.engine.scales.log2().values()) == {13.0}


def test_accumulated_gradients_are_divided_once(tmp_path):
    """Per-tensor sums over micro-batches keep the scale until the step."""
    found = {}
    for pieces in (1, 4):
        running = scaled_job(tmp_path / str(pieces), attrs.evolve(RECIPE, accumulate=pieces))
        found[pieces] = [update(running, running.feed.at(step), step) for step in range(3)]
    for one, four in zip(found[1], found[4], strict=True):
        assert one["loss"] == pytest.approx(four["loss"], rel=1e-3)
        assert one["grad_norm"] == pytest.approx(four["grad_norm"], rel=5e-3)


def test_it_trains_as_fp32_does(tmp_path):
    runs = {"resblock": scaled_job(tmp_path / "r"), "fp32": job(tmp_path / "f", RECIPE, system=DeepSystem(RECIPE))}
    losses = {
        name: [update(running, running.feed.at(step), step)["loss"] for step in range(8)]
        for name, running in runs.items()
    }
    assert losses["resblock"] != losses["fp32"]
    assert losses["resblock"] == pytest.approx(losses["fp32"], rel=1e-3)
    assert all(p.dtype == torch.float32 for p in runs["resblock"].stage.parameters())


def test_what_is_saved_goes_on_bit_for_bit(tmp_path):
    running = scaled_job(tmp_path / "run")
    branch(running, 1).spoilt = float("nan")
    update(running, running.feed.at(0), 0)
    branch(running, 1).spoilt = None
    for step in range(1, 4):
        update(running, running.feed.at(step), step)
    (tmp_path / "saved").mkdir()
    running.engine.save(tmp_path / "saved")
    other = scaled_job(tmp_path / "other", seed=99)
    other.engine.load(tmp_path / "saved")
    for step in range(4, 8):
        for one in (running, other):
            branch(one, 1).spoilt = float("inf") if step == 5 else None  # still within the guard
        assert update(running, running.feed.at(step), step) == update(other, other.feed.at(step), step)
    assert same(state(running), state(other))
    assert running.engine.scales.state_dict() == other.engine.scales.state_dict()
    assert running.engine.scales.log2()["prior.block.1"] == pytest.approx(12.5 + 6 / 1000)


def test_another_precision_takes_the_scales_away(tmp_path):
    running = scaled_job(tmp_path)
    assert all(block.grad_scale is not None for _, block in residuals(running.stage))
    engine().prepare(running.stage, RECIPE, steps=1)
    assert all(block.grad_scale is None for _, block in residuals(running.stage))


def test_scales_are_drawn_in_a_picture_of_their_own(tmp_path):
    running = scaled_job(tmp_path)
    train(running, 0)
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert [scales_of(row) for row in rows] == [[pytest.approx(13 + i / 1000)] * 3 for i in range(1, 13)]
    assert (tmp_path / "scales-prior.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curves-prior.png").exists()


def test_a_cpu_without_fp16_is_said_to_be_slow_once(monkeypatch, caplog):
    resblock._say_slow.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    Scales(nn.Sequential(Residual(nn.Linear(2, 2))))
    Scales(nn.Sequential(Residual(nn.Linear(2, 2))))
    assert caplog.text.count("has no fp16 arithmetic") == 1


def test_a_part_without_residual_sums_is_refused_by_name():
    system = DeepSystem()
    system.parts["prior"].block = nn.Identity()
    with pytest.raises(ConfigError, match="'prior' has none"):
        engine(precision="resblock").prepare(Stage(system, "prior"), RECIPE, steps=1)


MODELS = ("dalle-prior-tiny", "pixelcnn-tiny", "vqvae-tiny", "dvae-tiny", "clip-tiny")


def gradients(case, part):
    """Return every gradient of the loss on the case's batch."""
    part.zero_grad()
    batch = case.batch(part)[:2]
    batch = attrs.evolve(batch, images=batch.images.to(next(part.parameters()).dtype))
    part.loss(batch, case.cond()[:2], step=3, rng=case.rng(step=3)[:2])["loss"].backward()
    return {name: p.grad.clone() for name, p in part.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_float64_and_checkpointing_changes_no_bit(name):
    """On weights that are all away from zero; 2 % of a parameter's gradient, or of 2 % of the largest."""
    case = case_of(name)
    part = case.of(case.fresh()).train()
    exact = gradients(case, copy.deepcopy(part).double())
    checkpointed = copy.deepcopy(part)
    scales = Scales(part)
    found = gradients(case, part)
    Scales(checkpointed)
    checkpoint_branches(checkpointed)
    for key, again in gradients(case, checkpointed).items():
        assert torch.equal(found[key], again), key

    unscaled = (Grad(key, g, tuple(g.shape), None, None, False) for key, g in found.items())
    assert not scales.unscale(unscaled).any()
    assert found.keys() == exact.keys()
    largest = max(g.norm() for g in exact.values())
    for key, g in exact.items():
        assert (found[key] - g).norm() <= 0.02 * max(g.norm(), 0.02 * largest), key

"""Schedule, groups and average, against numbers worked out by hand."""

import math

import pytest
import torch
from torch import nn
from train_fakes import FakeSystem

from zoo.errors import ConfigError
from zoo.parts import Recipe
from zoo.train import optim
from zoo.train.ema import Ema
from zoo.train.stage import Stage


def test_warm_up_is_linear_from_zero_and_reaches_the_peak():
    recipe = Recipe(lr=1.0, warmup=4)
    assert [optim.rate(recipe, s, 100) for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_cosine_falls_to_the_end_at_decay_steps_and_stays():
    recipe = Recipe(lr=1.0, lr_end=0.2, warmup=10)
    assert optim.rate(recipe, 60, 110) == pytest.approx(0.6)  # half-way: the mean of both ends
    assert optim.rate(recipe, 35, 110) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert optim.rate(recipe, 110, 110) == pytest.approx(0.2)
    short = Recipe(lr=1.0, lr_end=0.2, decay_steps=50)
    assert optim.rate(short, 25, 1000) == pytest.approx(0.6)
    assert optim.rate(short, 900, 1000) == pytest.approx(0.2)


def test_constant_stays_at_the_peak():
    recipe = Recipe(lr=0.3, warmup=2, schedule="constant")
    assert [optim.rate(recipe, s, 10) for s in (0, 1, 9)] == [0.15, 0.3, 0.3]


def test_weight_decay_is_on_matrices_only():
    stage = Stage(FakeSystem(), "prior")
    decayed, plain = optim.groups(stage, Recipe(weight_decay=0.1))
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim < 2 for p in plain["params"])
    assert len(decayed["params"]) + len(plain["params"]) == len(list(stage.parameters()))


class Special(nn.Module):
    def __init__(self, forget=False):
        super().__init__()
        self.fast, self.slow = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        self.forget = forget

    def loss(self): ...

    def param_groups(self, recipe):
        groups = [{"params": [self.fast]}, {"params": [self.slow], "lr": recipe.lr / 10, "weight_decay": 0.0}]
        return groups[: 1 if self.forget else 2]


def special_stage(forget=False):
    system = FakeSystem()
    system.parts["prior"] = Special(forget)
    return Stage(system, "prior")


def test_a_part_may_give_its_own_groups_and_the_schedule_scales_them():
    made = optim.optimizer(special_stage(), Recipe(lr=1e-2))
    assert [group["scale"] for group in made.param_groups] == pytest.approx([1.0, 0.1])


def test_groups_that_leave_a_parameter_out_are_refused():
    with pytest.raises(ConfigError, match=r"param_groups.*'prior\.slow'|param_groups.*'slow'"):
        optim.groups(special_stage(forget=True), Recipe())


def test_the_average_is_the_formula():
    weight = nn.Parameter(torch.tensor([1.0]))
    ema = Ema({"w": weight}, decay=0.9)
    expected = 1.0
    for update, value in enumerate([2.0, 5.0, -1.0], start=1):
        weight.data.fill_(value)
        ema.update(update)
        expected = 0.9 * expected + 0.1 * value
    assert ema.average["w"].item() == pytest.approx(expected)
    with ema.swapped():
        assert weight.item() == pytest.approx(expected)
    assert weight.item() == -1.0


def test_the_average_moves_every_so_many_updates():
    weight = nn.Parameter(torch.tensor([0.0]))
    ema = Ema({"w": weight}, decay=0.5, every=3)
    weight.data.fill_(8.0)
    moved = []
    for update in range(1, 7):
        ema.update(update)
        moved.append(ema.average["w"].item())
    assert moved == [0.0, 0.0, 4.0, 4.0, 4.0, 6.0]


def test_the_average_is_fp32_for_half_precision_weights_and_comes_back_after_an_error():
    weight = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    ema = Ema({"w": weight}, decay=0.5)
    assert ema.average["w"].dtype == torch.float32
    ema.average["w"].fill_(3.0)
    with pytest.raises(RuntimeError), ema.swapped():
        raise RuntimeError
    assert torch.equal(weight, torch.ones(2, dtype=torch.bfloat16))

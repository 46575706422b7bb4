"""The law of the gradient scales, by arithmetic; and how gradients are divided by them at the step."""

import json
import logging
import math

import pytest
import torch
from torch import nn

from zoo.errors import BadRun, ConfigError
from zoo.interfaces import Grad
from zoo.nn import Residual
from zoo.nn.residual import residuals
from zoo.train.resblock import Scales


def stack(blocks=3):
    return nn.Sequential(*(Residual(nn.Linear(2, 2)) for _ in range(blocks)))


def flags(*bad, blocks=3):
    """What `unscale` returns when these blocks overflow; -1 is everything outside."""
    found = torch.zeros(blocks + 1, dtype=torch.bool)
    for i in bad:
        found[i] = True
    return found


def clean(scales, updates):
    for _ in range(updates):
        assert scales.update(flags(), made=True) == []


def levels(scales):
    return list(scales.log2().values())


@pytest.mark.parametrize("workers", [1, 8, 1024])
def test_scales_begin_at_two_to_the_thirteen_a_worker(workers):
    scales = Scales(stack(), workers=workers)
    assert scales.names == ("0", "1", "2")
    assert levels(scales) == [13 + math.log2(workers)] * 3
    assert scales.row() == {"scale/0": levels(scales)[0], "scale/1": levels(scales)[1], "scale/2": levels(scales)[2]}


def test_a_thousand_clean_updates_double():
    model = stack()
    scales = Scales(model)
    clean(scales, 1)
    assert 2 ** levels(scales)[0] == pytest.approx(2**13 * 2 ** (1 / 1000), rel=1e-12)
    clean(scales, 999)
    assert levels(scales) == [14.0] * 3
    assert [block.grad_scale.item() for _, block in residuals(model)] == [2.0**14] * 3


@pytest.mark.parametrize(("gap", "fell"), [(1, 0.5), (2, 0.5), (124, 0.5), (125, 1.0), (126, 1.0)])
def test_two_divisions_are_at_least_125_updates_apart(gap, fell):
    scales = Scales(stack())
    assert scales.update(flags(1), made=False) == ["1"]
    assert levels(scales) == [13.0, 12.5, 13.0]
    clean(scales, gap - 1)
    assert scales.update(flags(1), made=False) == (["1"] if fell == 1.0 else [])
    assert levels(scales)[1] == pytest.approx(13 - fell + (gap - 1) / 1000)
    assert levels(scales)[0] == pytest.approx(13 + (gap - 1) / 1000)


def test_the_guard_counts_skipped_updates_and_is_of_each_block():
    scales = Scales(stack())
    for _ in range(125):
        scales.update(flags(0), made=False)
    assert levels(scales) == [12.5, 13.0, 13.0]
    assert scales.update(flags(0, 2), made=False) == ["0", "2"]
    assert levels(scales) == [12.0, 13.0, 12.5]


def test_in_a_skipped_update_no_other_scale_moves():
    scales = Scales(stack())
    clean(scales, 7)
    before = levels(scales)
    scales.update(flags(2), made=False)
    assert levels(scales) == [before[0], before[1], before[2] - 0.5]
    scales.update(flags(-1), made=False)  # outside of all blocks: an embedding, a head
    assert levels(scales) == [before[0], before[1], before[2] - 0.5]


@pytest.mark.parametrize("where", [0, -1])
def test_an_update_with_bad_gradients_must_not_be_made(where):
    with pytest.raises(ValueError, match="not finite"):
        Scales(stack()).update(flags(where), made=True)


@pytest.mark.parametrize("workers", [1, 16])
def test_scales_stay_between_two_to_the_7_and_the_24_a_worker(workers):
    scales, base = Scales(stack(), workers=workers), math.log2(workers)
    clean(scales, 10_999)
    assert levels(scales)[0] == pytest.approx(base + 23.999)
    clean(scales, 3)
    assert levels(scales) == [base + 24.0] * 3
    for _ in range(34 * 125):
        scales.update(flags(0), made=False)
    assert levels(scales) == [base + 7.0, base + 24.0, base + 24.0]
    for _ in range(125):
        scales.update(flags(0), made=False)
    assert levels(scales)[0] == base + 7.0


def test_overflow_can_be_mended_until_the_lowest_scale():
    scales = Scales(stack())
    assert scales.can_fall(flags(0))
    assert scales.can_fall(flags(0, 2))
    assert not scales.can_fall(flags(0, -1)), "nothing is scaled outside of the blocks"
    for _ in range(11 * 125 + 1):  # twelve divisions
        assert scales.can_fall(flags(0))
        scales.update(flags(0), made=False)
    assert levels(scales)[0] == 7.0
    assert not scales.can_fall(flags(0))
    assert not scales.can_fall(flags(0, 1))
    assert scales.can_fall(flags(1))


def test_other_workers_multiply_scales_and_limits(caplog):
    caplog.set_level(logging.INFO)
    old, new = Scales(stack(), workers=8), Scales(stack(), workers=2)
    clean(old, 100)
    old.update(flags(1), made=False)
    new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    assert levels(new) == pytest.approx([x - 2 for x in levels(old)], abs=1e-9)
    assert "times 0.25, for 2 workers" in caplog.text
    assert new.update(flags(1), made=False) == [], "the guard goes on"
    clean(new, 11_500)
    assert levels(new) == [25.0] * 3


def test_what_branches_multiply_by():
    """With a mean over workers, M in the scale and in the paper's loss cancel."""
    for averaged, factor in ((True, 2.0**13), (False, 3 * 2.0**13)):
        model = stack()
        Scales(model, workers=3, averaged=averaged)
        assert [block.grad_scale.item() for _, block in residuals(model)] == [factor] * 3


def test_a_state_goes_on_exactly_and_other_blocks_are_refused():
    one, two = Scales(stack()), Scales(stack())
    clean(one, 3)
    one.update(flags(0), made=False)
    clean(one, 50)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for scales in (one, two):
        scales.update(flags(0, 1), made=False)
        clean(scales, 5)
    assert one.state_dict() == two.state_dict()
    assert torch.equal(one._values, two._values)
    with pytest.raises(BadRun, match="3 blocks and the model 2"):
        Scales(stack(2)).load_state_dict(one.state_dict())


def test_a_model_without_residual_sums_is_refused_in_a_sentence():
    with pytest.raises(ConfigError, match=r"--precision resblock scales .* and Linear has none: use fp32 or bf16"):
        Scales(nn.Linear(2, 2))


# Gradients at the step.


def grads(named):
    return [Grad(name, x, tuple(x.shape), None, None, x.ndim > 1) for name, x in named.items()]


def test_unscaling_divides_in_fp32_and_flags_each_block():
    model = nn.ModuleDict({"a": stack(2), "head": nn.Linear(2, 2)})
    scales = Scales(model)
    scales.update(flags(0, 1, blocks=2), made=False)  # to no power of two
    factor = model["a"][0].grad_scale
    given = {name: torch.randn(p.shape) * 1e-9 for name, p in model.named_parameters()}
    want = {name: x / factor if name.startswith("a.") else x.clone() for name, x in given.items()}
    assert not scales.unscale(grads(given)).any()
    assert all(torch.equal(given[name], want[name]) for name in given)
    assert not torch.equal(factor, factor.round())

    for name, where in (("a.0.branch.weight", 0), ("a.1.branch.bias", 1), ("head.bias", 2)):
        for value in (float("inf"), float("-inf"), float("nan")):
            given = {name: torch.ones(p.shape) for name, p in model.named_parameters()}
            given[name].view(-1)[-1] = value
            assert scales.unscale(grads(given)).tolist() == [i == where for i in range(3)]


def test_shards_may_be_empty_and_may_not_be_half():
    scales = Scales(stack())
    assert not scales.unscale(grads({"0.branch.weight": torch.empty(0)})).any()
    with pytest.raises(TypeError, match=r"1\.branch\.bias: .*float16"):
        scales.unscale(grads({"1.branch.bias": torch.ones(2).half()}))


def test_a_sum_inside_a_branch_belongs_to_the_outer_block():
    inner = nn.Sequential(Residual(nn.Linear(2, 2)), nn.Linear(2, 2))
    model = nn.Sequential(Residual(inner))
    scales = Scales(model)
    assert scales.names == ("0",)
    assert inner[0].grad_scale is None
    given = {name: torch.full(p.shape, 2.0**13) for name, p in model.named_parameters()}
    scales.unscale(grads(given))
    assert all(torch.equal(x, torch.ones_like(x)) for x in given.values())

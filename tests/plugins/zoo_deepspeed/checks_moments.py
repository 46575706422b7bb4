"""Checks of 16-bit moments in one process, run by `test_deepspeed_moments.py` in a process of their own."""

import attrs
import pytest
import torch
from checks_alone import RECIPE, built, engine, job, kept, offloading, steps
from train_fakes import options

from zoo.train.engine import TorchEngine
from zoo.train.shards import MOMENTS, Shards

SMALL = attrs.evolve(RECIPE, moments="16-bit", betas=(0.9, 0.96), weight_decay=0.1)
MATRIX = "prior.block.branch.1.weight"


@pytest.fixture(params=range(4))
def zero(request):
    return request.param


def running_of(folder, made, seed=0):
    return job(folder, made, SMALL, built(made, SMALL, seed=seed))


def saved(running, folder):
    """The moments in a checkpoint of what runs."""
    folder.mkdir()
    running.engine.save(folder)
    with Shards(folder) as found:
        return {f"{kind}:{name}": found.tensor(name, kind) for kind in MOMENTS for name in found.names(kind)}


@pytest.mark.parametrize("offload", [False, True])
def test_the_step_is_that_of_the_core_s_engine(tmp_path, zero, offload):
    if offload and not zero:
        return  # nothing is offloaded at stage 0
    one = running_of(tmp_path, TorchEngine(options(), device="cpu"))
    two = running_of(tmp_path, offloading(tmp_path, zero) if offload else engine(zero))
    for a, b in zip(steps(one, 8), steps(two, 8), strict=True):
        assert a == pytest.approx(b, rel=3e-3)
    for name, x in kept(one.engine).items():
        torch.testing.assert_close(kept(two.engine)[name], x, rtol=0, atol=2e-3)
    ours = saved(two, tmp_path / "saved")
    assert {name for name, x in ours.items() if x.dtype == torch.int16} == {f"{kind}:{MATRIX}" for kind in MOMENTS}
    assert ours[f"exp_avg:{MATRIX}"].count_nonzero() > 100


def test_resumed_at_the_same_stage_is_bit_for_bit_the_same(tmp_path, zero):
    whole = running_of(tmp_path, engine(zero))
    expected = steps(whole, 6)[3:]
    half = running_of(tmp_path, engine(zero))
    steps(half, 3)
    before = saved(half, tmp_path / "half")
    resumed = running_of(tmp_path, engine(zero), seed=99)
    resumed.engine.load(tmp_path / "half")
    after = saved(resumed, tmp_path / "again")
    assert all(torch.equal(x, after[name]) and x.dtype == after[name].dtype for name, x in before.items())
    assert steps(resumed, 3, 3) == expected
    one, two = kept(whole.engine), kept(resumed.engine)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_codes_pass_from_engine_to_engine_and_stage_to_stage(tmp_path):
    running = running_of(tmp_path, TorchEngine(options(), device="cpu"))
    steps(running, 2)
    codes = saved(running, tmp_path / "first")
    before = tmp_path / "first"
    for zero in (3, 0, 2, None, 1):
        made = TorchEngine(options(), device="cpu") if zero is None else engine(zero)
        running = running_of(tmp_path, made, seed=99)
        running.engine.load(before)
        before = tmp_path / f"by-{zero}"
        again = saved(running, before)
        assert codes.keys() == again.keys()
        assert all(torch.equal(x, again[name]) for name, x in codes.items())
        assert steps(running, 1, 2)[0]["skipped"] == 0.0


def test_an_average_on_the_cpu_is_the_same(tmp_path, zero):
    found = []
    for where in ("same", "cpu"):
        recipe = attrs.evolve(RECIPE, ema_device=where)
        made = engine(zero)
        running = job(tmp_path, made, recipe, built(made, recipe))
        steps(running, 3)
        with made.averaged():
            found.append({name: x.clone() for name, x in kept(made).items()})
        steps(running, 1, 3)
    assert all(torch.equal(x, found[1][name]) for name, x in found[0].items())

"""Cached sampling against full recomputation, for every mask, grid, condition, prefix and guidance."""

import pytest
import torch

from zoo.compiling import check_compiler
from zoo.errors import ConfigError, NotInstalled
from zoo.interfaces import Cond
from zoo.nn.sampling import draw
from zoo.rng import Rng
from zoo_dalle import compiled
from zoo_dalle.decode import Columns, Decoder, Ring, Scattered, slots

GRIDS = [(4, 4), (5, 3), (3, 7), (1, 6), (6, 1), (13, 13)]


@torch.inference_mode()
def stepped(model, codes, cond, given, decoder=Decoder):
    """Return logits [B,N-given,K] of the codes after the given ones, one step at a time."""
    decoder = decoder(model, len(codes))
    columns = [decoder.start(codes[:, :given], cond)]
    columns += [decoder.step(codes[:, i], i) for i in range(given, codes.shape[1] - 1)]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("reads", ["ids", "label", "nothing"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["row", "column", "conv", "window", "full"])
def test_cached_steps_equal_full_recomputation(build, inputs, kind, grid, reads):
    model = build(kinds=(kind,) * 3, depth=3, grids=(grid,), reads=reads)
    codes, cond = inputs(model, 2)
    full = model.logits(codes, cond)
    n = model.length
    for given in {0, 1, n // 2, n - 1}:
        assert torch.allclose(stepped(model, codes, cond, given), full[:, given:], atol=2e-5), given


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_cached_steps_equal_full_recomputation_of_the_whole_pattern_in_double(build, inputs, grid):
    model = build(depth=6, grids=(grid,), dtype=torch.float64)
    codes, cond = inputs(model)
    full = model.logits(codes, cond)
    assert torch.allclose(stepped(model, codes, cond, 0), full, atol=1e-12)


@pytest.mark.parametrize("block", ["pre", "sandwich"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("kind", ["row", "column", "conv", "window", "full"])
def test_steps_of_one_shape_equal_full_recomputation(build, inputs, kind, grid, block, monkeypatch):
    model = build(kinds=(kind,) * 2, depth=2, grids=(grid,), block=block)
    monkeypatch.setattr(model.frozen, "step", lambda rows, model, make: make())  # as it is before it is compiled
    codes, cond = inputs(model, 2)
    full = model.logits(codes, cond)
    for given in {0, model.length // 2}:
        mine = stepped(model, codes, cond, given, compiled.CompiledDecoder)
        assert torch.allclose(mine, full[:, given:], atol=2e-5), given


@pytest.fixture
def compiler():
    """Skip without one."""
    try:
        check_compiler("cpu")
    except NotInstalled as missing:
        pytest.skip(str(missing))


def both_ways(model, cond, **how):
    """Return whether samples are the same, compiled and not."""
    drawn = []
    for model.compiled in (False, True):
        drawn.append(model.sample(cond, batch=2, **how, rng=Rng(3, range(2))))
    return torch.equal(*drawn)


def test_compiled_samples_equal_the_others(build, inputs, compiler):
    model = build(kinds=("row", "column"), depth=2, grids=((3, 4),))
    _, cond = inputs(model, 2)
    assert both_ways(model, cond, guidance=1.5)
    with torch.no_grad():
        model.blocks[0].mlp.branch.up.weight.neg_()  # constants of the first graph
    assert both_ways(model, cond, guidance=1.5)


def test_a_compiled_step_is_of_its_own_model(build, inputs, compiler):
    models = [build(kinds=("conv",), depth=1, grids=((3, 4),), reads="nothing", seed=seed) for seed in (0, 1)]
    codes, cond = inputs(models[0], 2)
    for _ in range(2):
        for model in models:
            mine = stepped(model, codes, cond, 0, compiled.CompiledDecoder)
            assert torch.allclose(mine, model.logits(codes, cond), atol=2e-5)


def test_a_compiled_step_in_double(build, inputs, compiler):
    model = build(kinds=("column",), depth=1, grids=((3, 4),), reads="nothing", dtype=torch.float64)
    codes, cond = inputs(model, 2)
    mine = stepped(model, codes, cond, 0, compiled.CompiledDecoder)
    assert torch.allclose(mine, model.logits(codes, cond), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["row", "column", "conv", "window"])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_layer_keeps_no_more_than_its_mask_asks_for(kind, grid):
    prefix, n = 5, grid[0] * grid[1]
    plan = slots(kind, prefix, grid, 3, torch.device("cpu"))
    assert plan.count <= prefix + n
    if kind == "row":
        assert plan.count == prefix + min(grid[1] + 1, n)
    for i in range(n):
        assert prefix <= plan.slot(i) < plan.count
        assert 0 <= plan.oldest(i) <= i


def test_each_kind_has_its_own_plan():
    device = torch.device("cpu")
    assert isinstance(slots("row", 5, (32, 32), 11, device), Ring)
    assert isinstance(slots("column", 5, (32, 32), 11, device), Columns)
    assert isinstance(slots("conv", 5, (32, 32), 11, device), Scattered)
    assert isinstance(slots("conv", 5, (8, 8), 11, device), Ring)  # the window covers every distance it reaches


def by_hand(model, cond, rows, guidance, prefix, **how):
    """Return codes drawn by recomputing everything for each code."""
    u = Rng(4, range(rows)).uniform(model.length)
    codes = prefix.clone()
    null = Cond(drop=torch.ones(rows, dtype=torch.bool))
    for i in range(model.length):
        seen = codes[:, : i + 1].clamp(min=0)
        logits = model.logits(seen, cond)[:, i]
        if guidance != 1:
            unguided = model.logits(seen, null)[:, i]
            logits = unguided + guidance * (logits - unguided)
        codes[:, i] = torch.where(codes[:, i] >= 0, codes[:, i], draw(logits, u[:, i], **how))
    return codes


@pytest.mark.parametrize("how", [{}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.6}, {"temperature": 0.0}], ids=str)
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("reads", ["ids", "label"])
def test_samples_equal_those_drawn_by_hand(build, inputs, reads, guidance, how):
    model = build(reads=reads, grids=((5, 3),), dtype=torch.float64)
    codes, cond = inputs(model, 4)
    given = torch.tensor([[0], [2], [7], [15]])  # rows may be given to different lengths
    prefix = torch.where(torch.arange(15) < given, codes, -1)
    with torch.inference_mode():
        expected = by_hand(model, cond, 4, guidance, prefix, **how)
    drawn = model.sample(cond, batch=4, rng=Rng(4, range(4)), guidance=guidance, prefix=prefix, **how)
    assert torch.equal(drawn, expected)
    assert torch.equal(drawn[prefix >= 0], codes[prefix >= 0])


def test_a_common_prefix_is_read_in_one_pass(build, inputs):
    model = build(grids=((5, 3),), dtype=torch.float64)
    codes, cond = inputs(model)
    prefix = torch.where(torch.arange(15) < 8, codes, -1)
    with torch.inference_mode():
        expected = by_hand(model, cond, 3, 2.0, prefix)
    assert torch.equal(model.sample(cond, batch=3, rng=Rng(4, range(3)), guidance=2.0, prefix=prefix), expected)


def test_a_whole_prefix_comes_back(build, inputs):
    model = build()
    codes, cond = inputs(model)
    assert torch.equal(model.sample(cond, batch=3, rng=Rng(0, range(3)), prefix=codes), codes)


def test_guidance_of_one_draws_no_null_stream(build, inputs):
    model = build(cond_drop=0.0)
    _, cond = inputs(model)
    assert model.sample(cond, batch=3, rng=Rng(0, range(3))).shape == (3, 16)
    with pytest.raises(ConfigError, match="cond_drop"):
        model.sample(cond, batch=3, rng=Rng(0, range(3)), guidance=2.0)
    with pytest.raises(ConfigError, match="cond_drop"):
        build(reads="nothing", cond_drop=0.5).sample(Cond(), batch=3, rng=Rng(0, range(3)), guidance=2.0)


def test_guidance_of_zero_is_the_null_condition(build, inputs):
    model = build(dtype=torch.float64)
    _, cond = inputs(model)
    null = Cond(drop=torch.ones(3, dtype=torch.bool))
    unguided = model.sample(null, batch=3, rng=Rng(0, range(3)))
    assert torch.equal(model.sample(cond, batch=3, rng=Rng(0, range(3)), guidance=0.0), unguided)


def test_a_row_is_drawn_from_its_own_numbers(build, inputs):
    model = build(dtype=torch.float64)
    _, cond = inputs(model, 4)
    together = model.sample(cond, batch=4, rng=Rng(0, range(4)), guidance=1.5)
    for i in range(4):
        alone = model.sample(cond[i : i + 1], batch=1, rng=Rng(0, [i]), guidance=1.5)
        assert torch.equal(together[i : i + 1], alone)


def test_samples_follow_the_model_and_not_the_cache_of_an_earlier_call(build, inputs):
    model = build()
    _, cond = inputs(model)
    first = model.sample(cond, batch=3, rng=Rng(0, range(3)))
    model.sample(cond, batch=3, rng=Rng(1, range(3)), prefix=torch.zeros_like(first).fill_(-1))
    assert torch.equal(first, model.sample(cond, batch=3, rng=Rng(0, range(3))))
    with torch.no_grad():
        model.head.bias[0] = 100.0
    assert (model.sample(cond, batch=3, rng=Rng(0, range(3))) == 0).all()


def test_autocast_does_not_change_samples(build, inputs):
    model = build()
    _, cond = inputs(model)
    plain = model.sample(cond, batch=3, rng=Rng(0, range(3)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(plain, model.sample(cond, batch=3, rng=Rng(0, range(3))))

"""Moments of 16 bits: the update against float64, tracking of fp32, what is kept in which type, saving, refusals."""

import shutil

import attrs
import pytest
import torch
from torch import nn
from train_fakes import FakeSystem, engine, job

import zoo
from zoo.config import structure
from zoo.errors import ConfigError
from zoo.parts import Recipe
from zoo.planning.plan import plan
from zoo.rng import Rng
from zoo.train import adam16, optim
from zoo.train.loop import update
from zoo.train.shards import MOMENTS, Shards
from zoo.train.stage import Stage

RECIPE = Recipe(
    lr=1e-2, betas=(0.9, 0.96), batch=8, steps=60, schedule="constant", ema=0.9, weight_decay=0.1, moments="16-bit"
)


def made(shape, kind=adam16.AdamW16, seed=0, **settings):
    """A parameter and its optimiser."""
    p = nn.Parameter(Rng(seed, [0]).normal(*shape)[0])
    settings = {"lr": 1e-2, "betas": (0.9, 0.96), "weight_decay": 0.1} | settings
    return p, kind([{"params": [p], "packed": True}], fused=True, **settings)


def gradient(p, step, size=1e-3):
    return size * Rng(7, [0], step=step).normal(*p.shape)[0]


def moments(optimizer, p):
    """The values of both moments."""
    state = optimizer.state[p]
    return adam16.MEAN.decode(state["exp_avg"]), adam16.VARIANCE.decode(state["exp_avg_sq"])


@pytest.mark.parametrize("kind", [adam16.AdamW16, adam16.Adam16])
@pytest.mark.parametrize("size", [1e-3, 3.0], ids=["small", "clipped"])
def test_an_update_is_adam_s_in_float64_between_two_roundings(kind, size):
    """From the codes before to the two neighbours of what they should be after, and parameters."""
    p, optimizer = made((300, 300), kind)  # more than a chunk
    for t in range(1, 5):
        p.grad = gradient(p, t, size)
        before = [x.double() for x in moments(optimizer, p)] if t > 1 else [torch.zeros(300, 300).double()] * 2
        x, g = p.detach().double(), p.grad.double()
        optimizer.step()
        if kind is adam16.Adam16:
            g = g + 0.1 * x
        else:
            x = x * (1 - 1e-2 * 0.1)
        m, v = 0.9 * before[0] + 0.1 * g, (0.96 * before[1] + 0.04 * g**2).clamp(max=5.0)
        x -= 1e-2 * (m / (1 - 0.9**t)) / ((v / (1 - 0.96**t)).sqrt() + 1e-8)
        torch.testing.assert_close(p.detach().double(), x, rtol=2e-6, atol=1e-7)
        for got, exact, fmt, bits in zip(
            moments(optimizer, p), (m, v), (adam16.MEAN, adam16.VARIANCE), (9, 10), strict=True
        ):
            step = 2.0 ** (exact.abs().log2().floor().clamp(min=-58) - bits)
            cancelled = 1e-7 * max(size, 0.1)  # what fp32 loses of a sum near zero
            assert ((got.double() - exact).abs() <= step * 1.001 + cancelled * (fmt is adam16.MEAN)).all()
            assert (got.double() - exact).abs().mean() > step.mean() / 20, "it is rounded"
            assert float(got.max()) <= fmt.largest
    if size > 1:
        assert float(moments(optimizer, p)[1].max()) == adam16.CLIP
    else:
        assert float(moments(optimizer, p)[1].min()) > 0


def test_what_is_too_large_for_the_mean_is_clamped():
    p, optimizer = made((4, 4))
    p.grad = torch.full((4, 4), -1e6)
    optimizer.step()
    m, v = moments(optimizer, p)
    assert m.unique().tolist() == [-adam16.MEAN.largest]
    assert v.unique().tolist() == [adam16.CLIP]
    assert p.isfinite().all()


def test_zeros_stay_zero_and_signs_are_kept():
    p, optimizer = made((8, 8), weight_decay=0.0)
    kept = p.detach().clone()
    p.grad = torch.zeros(8, 8)
    p.grad[0] = torch.tensor([1.0, -1.0] * 4)
    for _ in range(3):
        optimizer.step()
    m, v = moments(optimizer, p)
    assert torch.equal(m[0].sign(), p.grad[0])
    assert not m[1:].any()
    assert not v[1:].any()
    assert torch.equal(p[1:], kept[1:])


@pytest.mark.parametrize("decay", [0.96, 0.999, 0.9999])
def test_a_variance_neither_stalls_nor_drifts(decay):
    """A large gradient, then small ones: rounded to nearest, the variance of 0.9999 would stay where it is."""
    p, optimizer = made((64, 64), betas=(0.9, decay), weight_decay=0.0)
    exact, nearest = torch.zeros(64, 64).double(), torch.zeros(64, 64)
    for t in range(600):
        p.grad = gradient(p, t, 1.0 if t < 10 else 1e-3)
        optimizer.step()
        exact = decay * exact + (1 - decay) * p.grad.double() ** 2
        nearest = adam16.VARIANCE.round_(decay * nearest + (1 - decay) * p.grad**2)
    ratio = moments(optimizer, p)[1].double() / exact
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.003)
    assert float(ratio.std()) < {0.96: 0.003, 0.999: 0.015, 0.9999: 0.02}[decay]
    off = abs(float((nearest.double() / exact).mean()) - 1)
    assert off > {0.96: 0.0, 0.999: 0.01, 0.9999: 0.04}[decay]


def test_rounding_depends_on_update_place_and_value_alone():
    one, two = made((200, 200)), made((200, 200))
    for t in range(3):
        for p, optimizer in (one, two):
            p.grad = gradient(p, t)
            optimizer.step()
    assert torch.equal(one[0], two[0])
    table = one[1]._scratches[torch.device("cpu")].dither
    for row in table:
        for i in range(4):  # of every fourth place each number comes once
            assert torch.equal(row[i : adam16._PERIOD : 4].sort().values, torch.arange(1 << 13, dtype=torch.int32))
        assert torch.equal(row[: len(row) - adam16._PERIOD], row[adam16._PERIOD :])


def test_a_parameter_in_another_order_of_memory_is_updated_alike():
    (p, optimizer), (q, other) = made((6, 3, 4, 4)), made((6, 3, 4, 4))
    q.data = q.data.contiguous(memory_format=torch.channels_last)
    for t in range(3):
        p.grad, q.grad = gradient(p, t), gradient(p, t).contiguous(memory_format=torch.channels_last)
        optimizer.step()
        other.step()
    assert torch.equal(p, q)


@pytest.mark.skipif(shutil.which("c++") is None and shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_compiled_kernel_does_the_same():
    (p, optimizer), (q, other) = made((300, 301)), made((300, 301), compiled=True)
    for t in range(4):
        for x, opt in ((p, optimizer), (q, other)):
            x.grad = gradient(p, t, 3.0 if t == 1 else 1e-3)
            opt.step()
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)
        for a, b, bits in zip(moments(optimizer, p), moments(other, q), (9, 10), strict=True):
            assert (a != b).float().mean() < 0.002
            assert ((a - b).abs() <= a.abs() * 2.0**-bits * 1.01).all()
        q.data.copy_(p)
        for kind in MOMENTS:
            other.state[q][kind].copy_(optimizer.state[p][kind])


def test_without_a_compiler_it_is_refused_in_one_line(monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("InvalidCxxCompiler: no compiler\nand more")

    monkeypatch.setattr(adam16, "_one_kernel", lambda: broken)
    with pytest.raises(ConfigError, match=r"compiled.*no compiler\); take moments_kernel=plain"):
        made((4, 4), compiled=True)


def test_matrices_of_blocks_have_codes_and_the_rest_fp32(tmp_path):
    running = job(tmp_path, RECIPE)
    update(running, running.feed.at(0), 0)
    types = {
        name: {kind: running.engine._optimizer.state[p][kind].dtype for kind in MOMENTS}
        for name, p in running.engine._weights.items()
    }
    packed = [name for name, kinds in types.items() if set(kinds.values()) == {torch.int16}]
    assert packed == ["prior.block.branch.1.weight"]
    assert all(set(kinds.values()) == {torch.float32} for name, kinds in types.items() if name not in packed)


def test_a_part_without_blocks_has_codes_for_all_matrices():
    system = FakeSystem()
    system.parts["prior"] = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    system.parts["prior"].loss = None
    groups = adam16.split(optim.groups(Stage(system, "prior"), RECIPE), Stage(system, "prior"))
    assert [(group["packed"], [tuple(p.shape) for p in group["params"]]) for group in groups] == [
        (True, [(4, 3)]), (False, [(4,), (4,), (4,)]),
    ]  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "resblock"])
def test_fifty_updates_are_near_those_of_fp32(tmp_path, precision):
    losses = {}
    for kind in ("fp32", "16-bit"):
        recipe = attrs.evolve(RECIPE, moments=kind)
        running = job(tmp_path / kind, recipe, system=FakeSystem(recipe))
        running.engine.__init__(attrs.evolve(running.engine._options, precision=precision), device="cpu")
        running.engine.prepare(running.stage, recipe, steps=recipe.steps)
        losses[kind] = [update(running, running.feed.at(i), i)["loss"] for i in range(50)]
    assert losses["16-bit"][-1] < losses["16-bit"][0] / 1.5
    assert losses["16-bit"] == pytest.approx(losses["fp32"], rel=5e-3)
    assert losses["16-bit"] != losses["fp32"]


def test_a_resumed_run_is_the_run_to_the_bit(tmp_path):
    whole = job(tmp_path / "whole", RECIPE)
    for i in range(6):
        update(whole, whole.feed.at(i), i)
    half = job(tmp_path / "half", RECIPE)
    for i in range(3):
        update(half, half.feed.at(i), i)
    (tmp_path / "kept").mkdir()
    half.engine.save(tmp_path / "kept")
    with Shards(tmp_path / "kept") as found:
        name = "prior.block.branch.1.weight"
        assert {found.tensor(name, kind).dtype for kind in MOMENTS} == {torch.int16}
        assert found.tensor("prior.head.weight", "exp_avg").dtype == torch.float32
    again = job(tmp_path / "again", RECIPE, system=FakeSystem(RECIPE, seed=5))
    again.engine.load(tmp_path / "kept")
    for i in range(3, 6):
        update(again, again.feed.at(i), i)
    for name, x in whole.engine.stage.state_dict().items():
        assert torch.equal(x, again.engine.stage.state_dict()[name]), name
    for name, p in whole.engine._weights.items():
        ours, theirs = whole.engine._optimizer.state[p], again.engine._optimizer.state[again.engine._weights[name]]
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.parametrize(("card", "prior"), [("dalle-prior-tiny", "train"), ("dvae-tiny", "train")])
def test_the_plan_is_what_the_optimiser_holds(card, prior):
    part = zoo.build(card, overrides=(f"{prior}.moments=16-bit",))
    role = zoo.info(card)["kind"]
    system = FakeSystem()
    system.parts = {role: part}
    system.stages, system.reads = {role: (role,)}, lambda part: ()
    optimizer = optim.optimizer(Stage(system, role), part.config.train)
    for p in part.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    held = [state[kind] for state in optimizer.state.values() for kind in MOMENTS]
    said = plan(card, overrides=(f"{prior}.moments=16-bit",), devices=1)
    assert said.memory.moments == sum(x.numel() * x.element_size() for x in held)
    assert said.memory.moments == sum(
        {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}.values()
    )
    assert said.memory.moments < plan(card, devices=1).memory.moments


def test_shards_of_the_plan_and_an_average_elsewhere():
    how = {"devices": 2, "batch": 64, "zero": 1, "storage": "zoo", "precision": "fp32"}
    fp32, small = (plan("dalle-prior", overrides=(f"train.moments={kind}",), **how) for kind in ("fp32", "16-bit"))
    cost = fp32.stage.cost
    matrices = sum(w.numel for w in cost.weights if cost.is_matrix(w))
    assert fp32.memory.moments - small.memory.moments == pytest.approx(4 * matrices / 2, abs=8)
    assert attrs.evolve(fp32.memory, moments=0) == attrs.evolve(small.memory, moments=0)
    away = plan("dalle-prior", overrides=("train.ema_device=cpu",), **how)
    assert fp32.memory.average > 0 == away.memory.average


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"moments": "16-bit", "eps": 1e-12}, r"'eps' of 1e-09 or more hides, got 1e-12; take .*moments=fp32"),
        ({"moments_kernel": "compiled"}, r"set moments=16-bit too"),
        ({"moments": "8-bit"}, r"8-bit"),
    ],
)
def test_refusals(said, message):
    with pytest.raises(ConfigError, match=message):
        structure(said, Recipe, where="train")


def test_the_engine_takes_an_average_on_the_cpu(tmp_path):
    kept = {}
    for where in ("same", "cpu"):
        recipe = attrs.evolve(RECIPE, ema_device=where, ema_every=2)
        running = job(tmp_path / where, recipe, system=FakeSystem(recipe))
        for i in range(5):
            update(running, running.feed.at(i), i)
        assert running.engine._ema.device == where
        kept[where] = {name: lazy.fetch() for name, lazy in running.engine.weights().items()}
        with running.engine.averaged():
            assert torch.equal(running.engine._weights["prior.head.weight"], kept[where]["prior.head.weight"])
    assert all(torch.equal(x, kept["cpu"][name]) for name, x in kept["same"].items())
    assert engine().zero == 0

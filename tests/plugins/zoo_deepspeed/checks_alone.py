"""Checks of the engine in one process, run by `test_deepspeed_alone.py` in a process of their own: DeepSpeed changes
torch for whoever imports it."""

import itertools

import attrs
import pytest
import torch
from torch import nn
from train_fakes import FakeData, FakePrior, FakeSystem, options

from zoo import registry
from zoo.errors import ConfigError
from zoo.nn import Residual
from zoo.parts import Recipe
from zoo.resolution import resolve_tree
from zoo.rng import Rng
from zoo.train import optim
from zoo.train.checkpoint import Checkpoints
from zoo.train.engine import TorchEngine
from zoo.train.feed import Feed
from zoo.train.loop import Job, update
from zoo.train.stage import Stage
from zoo_deepspeed import settings
from zoo_deepspeed.engine import DeepSpeedEngine

RECIPE = Recipe(lr=1e-2, batch=8, steps=12, schedule="constant", ema=0.9, clip=0.5)
LARGEST = 3_000_000


def job(folder, engine, recipe=RECIPE, system=None, data=None):
    """A prepared job on the fake system."""
    data, system = data or FakeData(), system or built(engine, recipe)
    stage = Stage(system, "prior")
    engine.prepare(stage, recipe, steps=recipe.steps)
    return Job(
        folder=folder, generator=system, stage=stage, engine=engine, recipe=recipe,
        feed=Feed(read=data.read, length=len(data), batch=recipe.batch, seed=3, world=engine.world,
                  pieces=recipe.accumulate),
        seed=3, shown=data, checkpoints=Checkpoints(folder / "checkpoints"), facts={}, save_every=5, sample_every=0,
    )  # fmt: skip


def built(engine, recipe=RECIPE, kind=FakeSystem, seed=0):
    """The fake system, its trained part built by the engine."""
    system = kind(recipe, seed)
    with engine.building(), torch.random.fork_rng():
        torch.manual_seed(seed)
        system.parts["prior"] = FakePrior(recipe)
    return system


def steps(running, count, start=0):
    return [update(running, running.feed.at(i), i) for i in range(start, start + count)]


def kept(engine):
    return {name: lazy.fetch().clone() for name, lazy in engine.weights().items()}


def close(one, two):
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-5, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.fixture(params=range(4))
def zero(request):
    return request.param


def engine(zero, **changes):
    return DeepSpeedEngine(options(zero=zero, **changes))


CARDS = [
    card.name for card in registry.list_models()
    if 0 < card.params < LARGEST and card.kind not in ("generator", "tokenizer", "latent")
]  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_a_part_built_in_pieces_has_the_weights_of_one_built_whole(name):
    """So every module initialises its own parameters in its own constructor, and none is shared."""
    node, config = resolve_tree(name)
    made = engine(3)
    whole = registry.build_system(node, config, seed=5)
    pieces = registry.build_system(node, config, seed=5, trained=(node.interface,), building=made.building())
    plain = dict(whole.parts[node.interface].named_parameters())
    for key, p in pieces.parts[node.interface].named_parameters():
        assert optim.whole_shape(p) == (plain[key].shape or (1,)), key
        assert torch.equal(p.ds_tensor.view(-1)[: p.ds_numel], plain[key].data.view(-1)), key


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_step_is_that_of_the_core_s_engine(tmp_path, zero, accumulate):
    recipe = attrs.evolve(RECIPE, accumulate=accumulate, weight_decay=0.1)
    one, two = job(tmp_path, TorchEngine(options(), device="cpu"), recipe), job(tmp_path, engine(zero), recipe)
    for a, b in zip(steps(one, 5), steps(two, 5), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    close(kept(one.engine), kept(two.engine))
    with one.engine.averaged(), two.engine.averaged():
        close(dict(one.stage.state_dict()), dict(two.stage.state_dict()))
    assert steps(one, 2, 5)[1] == pytest.approx(steps(two, 2, 5)[1], rel=1e-5)


def test_gradients_come_in_the_order_of_construction(tmp_path, zero):
    one, two = job(tmp_path, TorchEngine(options(), device="cpu")), job(tmp_path, engine(zero))
    for running in (one, two):
        batch = running.generator.encode("prior", running.feed.at(0))
        running.engine.backward(running.engine(batch, 0, running.feed.rng(0))["loss"])
    for a, b in zip(one.engine.gradients(), two.engine.gradients(), strict=True):
        assert (a.name, a.shape, a.block, a.matrix) == (b.name, b.shape, b.block, b.matrix)
        torch.testing.assert_close(b.tensor.view(-1), a.tensor.view(-1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_changes_nothing_and_is_named(tmp_path, zero, what, caplog):
    running = job(tmp_path, engine(zero))
    prior = running.generator.parts["prior"]
    steps(running, 1)
    before = kept(running.engine)
    if what == "loss":
        prior.poison = lambda step: True
    else:
        hook = prior.block.branch[1].register_full_backward_hook(lambda m, gi, go: tuple(g * float("inf") for g in gi))
    values = steps(running, 1, 1)[0]
    assert values["skipped"] == 1.0
    after = kept(running.engine)
    assert all(torch.equal(before[name], after[name]) for name in before)
    if what == "loss":
        assert "step 2 skipped: loss is nan" in caplog.text
        prior.poison = None
    else:
        assert "not finite in prior." in caplog.text
        hook.remove()
    assert steps(running, 1, 2)[0]["skipped"] == 0.0
    assert not torch.equal(kept(running.engine)["prior.head.weight"], before["prior.head.weight"])


class Sometimes(FakeSystem):
    """A parameter has part in the loss of the first update alone."""

    def loss(self, part, batch, *, step, rng):
        losses = super().loss(part, batch, step=step, rng=rng)
        if step == 0:
            losses["loss"] = losses["loss"] + self.parts["prior"].unused.sum()
        return losses


def offloading(folder, zero):
    """An engine whose optimiser is on the CPU side of DeepSpeed."""
    own = folder / f"offload{zero}.json"
    own.write_text(f'{{"zero_optimization": {{"stage": {zero}, "offload_optimizer": {{"device": "cpu"}}}}}}')
    return DeepSpeedEngine(options(engine_config=own))


@pytest.mark.parametrize("offload", [False, True])
def test_a_gradient_is_not_met_again_where_the_next_loss_has_none(tmp_path, zero, offload):
    if offload and not zero:
        return  # nothing is offloaded at stage 0
    runs = []
    for made in (TorchEngine(options(), device="cpu"), offloading(tmp_path, zero) if offload else engine(zero)):
        runs.append(job(tmp_path, made, system=built(made, kind=Sometimes)))
    for a, b in zip(steps(runs[0], 4), steps(runs[1], 4), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    close(kept(runs[0].engine), kept(runs[1].engine))


def test_checkpoints_pass_from_engine_to_engine_and_stage_to_stage(tmp_path):
    def fresh(zero):
        made = TorchEngine(options(), device="cpu") if zero is None else engine(zero)
        return job(tmp_path, made, system=built(made, seed=99))

    whole = job(tmp_path, TorchEngine(options(), device="cpu"))
    expected = steps(whole, 14)
    running = job(tmp_path, TorchEngine(options(), device="cpu"))
    steps(running, 2)
    for i, zero in enumerate((3, 0, None, 1, 2, None)):
        folder = tmp_path / str(i)
        folder.mkdir()
        running.engine.save(folder)
        running = fresh(zero)
        running.engine.load(folder)
        for a, b in zip(steps(running, 2, 2 * i + 2), expected[2 * i + 2 : 2 * i + 4], strict=True):
            assert a == pytest.approx(b, rel=1e-5)
    close(kept(running.engine), kept(whole.engine))


def test_resumed_at_the_same_stage_is_bit_for_bit_the_same(tmp_path, zero):
    whole = job(tmp_path, engine(zero))
    expected = steps(whole, 6)[3:]
    half = job(tmp_path, engine(zero))
    steps(half, 3)
    half.engine.save(tmp_path)
    other = engine(zero)
    resumed = job(tmp_path, other, system=built(other, seed=99))
    resumed.engine.load(tmp_path)
    assert steps(resumed, 3, 3) == expected
    one, two = kept(whole.engine), kept(resumed.engine)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_fp16_scales_its_loss_and_finds_its_scale(tmp_path, zero):
    own = tmp_path / "ds.json"
    own.write_text('{"fp16": {"enabled": true, "initial_scale_power": 40, "hysteresis": 1, "loss_scale_window": 3}}')
    running = job(tmp_path, engine(zero, precision="fp16", engine_config=own))
    values = steps(running, 30)
    scales = [row["loss_scale"] for row in values]
    first = next(i for i, row in enumerate(values) if not row["skipped"])
    assert first > 3
    assert all(row["skipped"] == row.get("settling", 0.0) for row in values)
    assert scales[: first + 1] == [2.0 ** (40 - i) for i in range(first + 1)]
    assert {b / a for a, b in itertools.pairwise(scales)} == {0.5, 1.0, 2.0}
    plain = steps(job(tmp_path, TorchEngine(options(), device="cpu")), 3, first)  # nothing had changed until then
    assert not any(row["skipped"] for row in values[first : first + 3])
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in values[first : first + 3]] == pytest.approx([row[name] for row in plain], rel=1e-2)


def test_a_part_without_parameters_goes_through_the_same_loop(zero):
    class Uniform(nn.Module):
        def loss(self, batch, cond, *, step, rng):
            return {"loss": torch.tensor(3.0)}

    system = FakeSystem()
    system.parts["prior"] = Uniform()
    made = engine(zero)
    made.prepare(Stage(system, "prior"), RECIPE, steps=2)
    batch = system.encode("prior", FakeData().read([0, 1]))
    made.backward(made(batch, 0, Rng(0, [0, 1]))["loss"])
    assert made.step() == {"lr": 1e-2, "grad_norm": 0.0, "skipped": 0.0}


def test_frozen_parts_are_never_partitioned(tmp_path):
    node, config = resolve_tree("dalle-tiny")
    made = engine(3)
    system = registry.build_system(node, config, seed=0, trained=("prior",), building=made.building())
    made.prepare(Stage(system, "prior"), Recipe(batch=4), steps=1)
    assert all(hasattr(p, "ds_id") for p in system.parts["prior"].parameters())
    for role in ("codebook", "reranker"):
        assert not any(hasattr(p, "ds_id") or p.numel() == 0 for p in system.parts[role].parameters())


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offload_through_one_s_own_file(tmp_path, stage):
    one = job(tmp_path, TorchEngine(options(), device="cpu"))
    made = offloading(tmp_path, stage)
    two = job(tmp_path, made, system=built(made))
    assert made._ds.zero_cpu_offload()
    for a, b in zip(steps(one, 4), steps(two, 4), strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    two.generator.parts["prior"].poison = lambda step: True
    before = kept(two.engine)
    assert steps(two, 1, 4)[0]["skipped"] == 1.0
    assert all(torch.equal(x, before[name]) for name, x in kept(two.engine).items())
    two.generator.parts["prior"].poison = None
    assert steps(two, 1, 5)[0]["skipped"] == 0.0  # what made it skip is gone


def test_weights_are_themselves_again_after_a_picture_that_failed(tmp_path, zero):
    whole, running = job(tmp_path, engine(zero)), job(tmp_path, engine(zero))
    expected = steps(whole, 5)[3:]
    steps(running, 3)
    with pytest.raises(OSError, match="full"), running.engine.averaged():
        raise OSError("full")
    assert steps(running, 2, 3) == expected


def test_a_file_that_contradicts_the_recipe_is_refused_and_names_both(tmp_path):
    own = tmp_path / "ds.json"
    own.write_text('{"train_batch_size": 64}')
    with pytest.raises(ConfigError, match=r"ds.json says train_batch_size=64 and the run has 8 \(--batch\)"):
        job(tmp_path, engine(1, engine_config=own))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"zero_optimization": {"stage": 2, "reduce_bucket_size": "big"}}', "ds.json: 'reduce_bucket_size' is 'big'"),
        ('{"wall_clock_breakdown": "maybe"}', "ds.json: DeepSpeed does not accept it"),
    ],
)
def test_a_value_that_deepspeed_cannot_read_is_one_line(tmp_path, text, said):
    own = tmp_path / "ds.json"
    own.write_text(text)
    with pytest.raises(ConfigError, match=said):
        engine(None, engine_config=own)


def test_the_names_a_file_may_hold_are_deepspeeds():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    fields = DeepSpeedZeroConfig.model_fields
    assert set(settings.ZERO) <= {*fields, *(field.alias for field in fields.values())}


def test_residual_branches_are_recomputed_to_the_same_numbers(tmp_path, zero):
    from zoo.nn.residual import checkpoint_branches

    one, two = job(tmp_path, engine(zero)), job(tmp_path, engine(zero))
    checkpoint_branches(two.stage)
    assert any(isinstance(m, Residual) and m.checkpointed for m in two.stage.modules())
    for a, b in zip(steps(one, 3), steps(two, 3), strict=True):
        assert a == pytest.approx(b, rel=1e-6)

"""The torch engine: accumulation, clipping, skipping, precision, and what it refuses."""

import attrs
import pytest
import torch
from torch import nn
from train_fakes import FakeData, FakeSystem, engine, job, options

from zoo.errors import ConfigError
from zoo.parts import Recipe
from zoo.rng import Rng
from zoo.train.loop import Diverged, train, update
from zoo.train.metrics import read_rows
from zoo.train.run import make_engine
from zoo.train.stage import Stage

RECIPE = Recipe(lr=1e-2, batch=8, steps=12, schedule="constant", ema=0.9)


def weights(made):
    return {name: x.clone() for name, x in made.stage.state_dict().items()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_only_trained_parts_are_found_and_frozen_ones_stay_in_evaluation():
    system = FakeSystem()
    stage = Stage(system, "prior").train()
    assert {name.split(".")[0] for name, _ in stage.named_parameters()} == {"prior"}
    assert not system.parts["codebook"].shift.requires_grad
    assert not system.parts["codebook"].training
    assert system.parts["prior"].training


def test_accumulation_equals_the_whole_batch(tmp_path):
    made = {}
    for pieces in (1, 4):
        running = job(tmp_path / str(pieces), attrs.evolve(RECIPE, accumulate=pieces, optimizer="adamw"))
        for step in range(3):
            values = update(running, running.feed.at(step), step)
        made[pieces] = (values, dict(running.stage.named_parameters()))
    assert made[1][0]["loss"] == pytest.approx(made[4][0]["loss"], rel=1e-6)
    assert made[1][0]["grad_norm"] == pytest.approx(made[4][0]["grad_norm"], rel=1e-5)
    for name, p in made[1][1].items():
        torch.testing.assert_close(p, made[4][1][name], rtol=1e-5, atol=1e-6)


def test_a_loss_over_the_whole_batch_is_not_split():
    system = FakeSystem()
    system.parts["prior"].whole_batch = True
    with pytest.raises(ConfigError, match=r"prior: .*accumulate"):
        engine().prepare(Stage(system, "prior"), attrs.evolve(RECIPE, accumulate=2), steps=1)


def plain_sgd(made):
    """Put an optimiser in place whose update is the gradient itself."""
    scale = [group["scale"] for group in made._optimizer.param_groups]
    made._optimizer = torch.optim.SGD(made._weights.values(), lr=1.0)
    made._optimizer.param_groups[0]["scale"] = scale[0]


@pytest.mark.parametrize("clip", [None, 1e-2, 1e9])
def test_clipping_is_by_the_global_norm(tmp_path, clip):
    running = job(tmp_path, attrs.evolve(RECIPE, lr=1.0, clip=clip))
    plain_sgd(running.engine)
    before = [p.detach().clone() for p in running.stage.parameters()]
    values = update(running, running.feed.at(0), 0)
    moved = torch.cat([(a - b).flatten() for a, b in zip(before, running.stage.parameters(), strict=True)]).norm()
    expected = min(values["grad_norm"], clip or float("inf"))
    assert moved.item() == pytest.approx(expected, rel=1e-4)


def test_a_parameter_without_gradient_counts_as_zero_and_order_is_that_of_construction(tmp_path):
    running = job(tmp_path, RECIPE)
    made = running.engine
    made.backward(made(running.generator.encode("prior", running.feed.at(0)), 0, running.feed.rng(0))["loss"])
    grads = list(made.gradients())
    assert [g.name for g in grads] == [name for name, _ in running.stage.named_parameters()]
    by_name = {g.name: g for g in grads}
    assert not by_name["prior.unused"].tensor.any()
    assert by_name["prior.block.branch.1.weight"].block == "prior.block"
    assert by_name["prior.block.branch.1.weight"].matrix
    assert not by_name["prior.block.branch.1.bias"].matrix
    assert by_name["prior.head.weight"].block is None
    assert not by_name["prior.head.weight"].matrix


def test_a_loss_that_is_not_finite_changes_nothing_and_is_named(tmp_path, caplog):
    running = job(tmp_path, RECIPE)
    running.generator.parts["prior"].poison = lambda step: step == 1
    update(running, running.feed.at(0), 0)
    before = weights(running.engine)
    average = {k: x.clone() for k, x in running.engine._ema.average.items()}
    values = update(running, running.feed.at(1), 1)
    assert values["skipped"] == 1.0
    assert same(before, weights(running.engine))  # the running mean in the buffer too
    assert same(average, running.engine._ema.average)
    assert "prior: step 2 skipped: loss is nan" in caplog.text
    assert update(running, running.feed.at(2), 2)["skipped"] == 0.0
    assert not same(before, weights(running.engine))


def test_a_gradient_that_is_not_finite_is_skipped_and_its_block_named(tmp_path, caplog):
    running = job(tmp_path, RECIPE)
    made = running.engine
    before = weights(made)
    made(running.generator.encode("prior", running.feed.at(0)), 0, running.feed.rng(0))
    next(g for g in made.gradients() if g.block).tensor.fill_(float("inf"))
    assert made.step()["skipped"] == 1.0
    assert same(before, weights(made))
    assert "prior.block" in caplog.text


def test_a_run_survives_one_bad_step_and_gives_up_after_ten_in_a_row(tmp_path):
    running = job(tmp_path / "a", RECIPE)
    running.generator.parts["prior"].poison = lambda step: step == 4
    train(running, 0)
    rows = read_rows(tmp_path / "a" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert [row["step"] for row in rows if row["skipped"]] == [5]
    assert rows[4]["loss"] is None
    hopeless = job(tmp_path / "b", RECIPE)
    hopeless.generator.parts["prior"].poison = lambda step: step >= 1
    with pytest.raises(Diverged, match="prior: the last 10 updates up to step 11"):
        train(hopeless, 0)


def test_bf16_trains_fp32_weights_close_to_fp32(tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        running = job(tmp_path / precision, RECIPE)
        if precision == "bf16":
            bf16 = engine(precision="bf16")
            bf16.prepare(running.stage, RECIPE, steps=RECIPE.steps)
            running = attrs.evolve(running, engine=bf16)
        losses[precision] = [update(running, running.feed.at(s), s)["loss"] for s in range(6)]
        assert all(p.dtype == torch.float32 for p in running.stage.parameters())
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=2e-2)


def test_what_is_saved_goes_on_bit_for_bit(tmp_path):
    running = job(tmp_path / "run", RECIPE)
    for step in range(4):
        update(running, running.feed.at(step), step)
    (tmp_path / "saved").mkdir()
    running.engine.save(tmp_path / "saved")
    assert {p.suffix for p in (tmp_path / "saved").iterdir()} == {".safetensors", ".json"}
    other = job(tmp_path / "other", RECIPE, system=FakeSystem(RECIPE, seed=99))
    other.engine.load(tmp_path / "saved")
    for step in range(4, 8):
        assert update(running, running.feed.at(step), step) == update(other, other.feed.at(step), step)
    assert same(weights(running.engine), weights(other.engine))
    assert same(running.engine._ema.average, other.engine._ema.average)


def test_samples_see_the_average_and_training_goes_on_without_it(tmp_path):
    running = job(tmp_path, RECIPE)
    update(running, running.feed.at(0), 0)
    before = weights(running.engine)
    with running.engine.averaged():
        assert torch.equal(
            running.generator.parts["prior"].head.weight, running.engine._ema.average["prior.head.weight"]
        )
        assert not torch.equal(running.generator.parts["prior"].head.weight, before["prior.head.weight"])
    assert same(before, weights(running.engine))


class Uniform(nn.Module):
    """A prior with nothing to learn."""

    def loss(self, batch, cond, *, step, rng):
        return {"loss": torch.tensor(3.0)}


def test_a_part_without_parameters_goes_through_the_same_loop():
    system = FakeSystem()
    system.parts["prior"] = Uniform()
    made = engine()
    made.prepare(Stage(system, "prior"), RECIPE, steps=2)
    batch = system.encode("prior", FakeData().read([0, 1]))
    made.backward(made(batch, 0, Rng(0, [0, 1]))["loss"])
    assert made.step() == {"lr": 1e-2, "grad_norm": 0.0, "skipped": 0.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"zero": 2}, "--engine deepspeed"),
        ({"shard": "all"}, "--engine deepspeed"),
        ({"precision": "fp16"}, "--precision fp16"),
    ],
)
def test_what_needs_another_engine_is_refused_in_a_line(changes, said):
    with pytest.raises(ConfigError, match=said):
        engine(**changes)


def test_a_reducer_in_one_process_is_said_to_do_nothing(caplog):
    engine(reducer="powersgd:rank=2")
    assert "--reducer powersgd:rank=2 has nothing to do between machines: there is one process" in caplog.text


def test_an_unknown_setting_of_a_reducer_is_refused():
    with pytest.raises(ConfigError, match="rnk"):
        make_engine(options(reducer="powersgd:rnk=2"))


def test_options_are_checked_where_they_are_made():
    with pytest.raises(ValueError, match="steps"):
        options(steps=0)

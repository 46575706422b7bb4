"""The engine in double precision: what it computes in, what it keeps, and what it hands on."""

import attrs
import pytest
import torch
from train_fakes import FakeData, FakeSystem, engine, options

from zoo.errors import ConfigError
from zoo.parts import Recipe
from zoo.rng import Rng
from zoo.train.double import DoubleEngine
from zoo.train.run import make_engine
from zoo.train.stage import Stage

RECIPE = Recipe(lr=1e-2, batch=8, steps=9, schedule="constant", ema=0.9, clip=0.5, optimizer="adamw")
ROWS = range(RECIPE.batch)


def prepared(made, recipe=RECIPE):
    system = FakeSystem(recipe)
    made.prepare(Stage(system, "prior"), recipe, steps=recipe.steps)
    return made, system


def double(recipe=RECIPE):
    return prepared(DoubleEngine(options(), device="cpu"), recipe)


def go_on(made, system, steps):
    """Make these updates."""
    batch = system.encode("prior", FakeData().read(ROWS))
    pieces = made.recipe.accumulate
    each = len(ROWS) // pieces
    for step in steps:
        for i in range(0, len(ROWS), each):
            losses = made(batch[i : i + each], step, Rng(0, ROWS[i : i + each], step=step))
            made.backward(losses["loss"])
        made.step()


def apart(one, two):
    """Return the largest difference of two stages' weights."""
    pairs = zip(one.stage.parameters(), two.stage.parameters(), strict=True)
    return max(float((a.detach() - b.detach()).abs().max()) for a, b in pairs)


def test_only_rounding_parts_two_ways_to_sum_in_fp32():
    """The batch whole and in four pieces: the same numbers to 1e-13 here, to 1e-9 at most in fp32."""
    split = attrs.evolve(RECIPE, accumulate=4)
    found = {}
    for name, make in {"double": double, "torch": lambda recipe: prepared(engine(), recipe)}.items():
        whole, pieces = make(RECIPE), make(split)
        for made, system in (whole, pieces):
            go_on(made, system, range(4))
        found[name] = apart(whole[0], pieces[0])
    assert found["double"] < 1e-13
    assert found["torch"] > 1e-9


def test_floats_of_a_batch_are_wide_and_the_rest_is_as_it_was():
    made, _ = double()
    seen = []
    made.stage.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    batch = attrs.evolve(FakeData().read(ROWS), codes=torch.zeros(8, 4, dtype=torch.int64), text=torch.zeros(8, 2, 3))
    made(batch, 0, Rng(0, ROWS))
    (got,) = seen
    assert (got.images.dtype, got.text.dtype, got.codes.dtype) == (torch.float64, torch.float64, torch.int64)
    assert got.texts == batch.texts


def test_what_it_hands_on_is_fp32_and_training_goes_on_in_fp64():
    made, system = double()
    go_on(made, system, range(2))
    average = {name: x.clone() for name, x in made._ema.average.items()}
    before = {name: x.clone() for name, x in made.stage.state_dict().items()}
    kept = {name: lazy.fetch() for name, lazy in made.weights().items()}
    with made.averaged():
        drawn = {name: x.clone() for name, x in made.stage.state_dict().items()}
    after = made.stage.state_dict()
    assert {lazy.dtype for lazy in made.weights().values()} == {x.dtype for x in kept.values()} == {torch.float32}
    assert all(torch.equal(x, drawn[name]) for name, x in kept.items())
    assert all(torch.equal(drawn[name], x.float()) for name, x in average.items())
    assert all(x.dtype == torch.float64 and torch.equal(x, after[name]) for name, x in before.items())


def test_its_checkpoint_goes_on_bit_for_bit_and_in_the_engine_in_fp32(tmp_path):
    made, system = double()
    go_on(made, system, range(3))
    made.save(tmp_path)
    go_on(made, system, range(3, 5))
    again, system = double()
    again.load(tmp_path)
    go_on(again, system, range(3, 5))
    assert apart(made, again) == 0
    narrow, system = prepared(engine())
    narrow.load(tmp_path)
    assert {p.dtype for p in narrow.stage.parameters()} == {torch.float32}
    go_on(narrow, system, range(3, 5))
    assert apart(made, narrow) < 1e-5


def test_it_is_an_engine_of_its_name_and_refuses_other_precisions():
    assert isinstance(make_engine(options(engine="double")), DoubleEngine)
    with pytest.raises(ConfigError, match="--precision bf16: engine 'double' computes in fp64"):
        make_engine(options(engine="double", precision="bf16"))
    with pytest.raises(ConfigError, match="--zero"):
        make_engine(options(engine="double", zero=2))


def test_moments_in_16_bits_are_refused():
    with pytest.raises(ConfigError, match="moments = 16-bit: engine 'double'"):
        double(attrs.evolve(RECIPE, moments="16-bit", eps=1e-8))

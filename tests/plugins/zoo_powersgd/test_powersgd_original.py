"""The published algorithm, with ranks as threads, in float64, against numpy."""

import attrs
import numpy as np
import pytest
import torch
from powersgd_fakes import Exchange, Ranks, Room, grads, low, random, spread

from zoo.errors import BadRun
from zoo_powersgd.configs import PowerSgd as Config
from zoo_powersgd.original import PowerSgd, build

CONFIG = Config(rank=3, dense_steps=0, min_elements=1, min_saving=1.0)


def group(size: int = 4, seed: int = 0, **changes) -> Ranks:
    return Ranks(PowerSgd, attrs.evolve(CONFIG, **changes), size, seed)


def close(a, b, tolerance=1e-11):
    torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (16, 3, 3, 3)])
def test_a_rank_as_high_as_the_true_one_gives_the_exact_mean(shape) -> None:
    """Each rank's gradient is of full rank; their mean is not."""
    mean = low(0, shape[0], int(np.prod(shape[1:])), 3)
    parts = spread(mean, 4)
    assert torch.linalg.matrix_rank(parts[0]) > 3
    answers = group().step([{"w": x.view(shape)} for x in parts])
    for reduced, left in answers:
        close(left["w"], mean.view(shape))
        assert reduced.norm_squared == pytest.approx(float(mean.square().sum()), rel=1e-12)
        assert reduced.finite


def test_it_is_algorithm_1() -> None:
    """Against the paper's algorithm written in numpy: warm start, error feedback, both orientations of a matrix."""
    size, steps = 3, 6
    ranks = group(size)
    shapes = {"wide": (12, 17), "tall": (19, 11)}
    first = {name: random(7, max(shape), 3) for name, shape in shapes.items()}
    loaded = {"steps": 0, "seed": 0, "sent/matrices": 0, "sent/rest": 0}
    ranks.each(lambda k, r: r.load_state_dict({**loaded, **{f"q/{n}": q for n, q in first.items()}}))
    q = {name: x.numpy() for name, x in first.items()}
    error = {name: [np.zeros(shape) for _ in range(size)] for name, shape in shapes.items()}
    for step in range(steps):
        mine = [
            {n: random(100 * step + 10 * k + i, *s) for i, (n, s) in enumerate(shapes.items())} for k in range(size)
        ]
        answers = ranks.step(mine)
        for name in shapes:
            flip = (lambda x: x.T) if name == "tall" else (lambda x: x)
            ms = [flip(mine[k][name].numpy() + error[name][k]) for k in range(size)]
            p, _ = np.linalg.qr(sum(m @ q[name] for m in ms) / size)
            q[name] = sum(m.T @ p for m in ms) / size
            update = p @ q[name].T
            error[name] = [flip(m - update) for m in ms]
            for k, (_, left) in enumerate(answers):
                close(left[name], torch.from_numpy(flip(update).copy()))
                close(ranks.reducers[k]._errors[name], torch.from_numpy(error[name][k].copy()))


def test_nothing_is_lost_over_time() -> None:
    """Mean of the errors + what was applied = mean of the gradients; an update that is skipped counts for nothing."""
    size = 3
    ranks = group(size)
    applied, given = torch.zeros(14, 9, dtype=torch.float64), torch.zeros(14, 9, dtype=torch.float64)
    for step in range(8):
        mine = [random(10 * step + k, 14, 9) for k in range(size)]
        make = step not in (2, 5)
        answers = ranks.step([{"w": x} for x in mine], applied=make)
        if make:
            applied += answers[0][1]["w"]
            given += sum(mine) / size
    left = sum(r._errors["w"] for r in ranks.reducers) / size
    assert float(left.norm()) > 1
    close(applied + left, given)


def test_the_norm_is_that_of_the_mean_gradient_and_replicas_are_equal() -> None:
    mine = [{"w": random(k, 20, 30), "b": random(k + 50, 7), "t": random(k + 90, 30, 4)} for k in range(4)]
    answers = group().step(mine, plain=("t",))
    for reduced, left in answers:
        assert reduced.norm_squared == pytest.approx(sum(float(x.square().sum()) for x in left.values()), rel=1e-12)
        assert all(torch.equal(left[name], answers[0][1][name]) for name in left)
        close(left["b"], sum(x["b"] for x in mine) / 4)
        close(left["t"], sum(x["t"] for x in mine) / 4)
    assert torch.linalg.matrix_rank(answers[0][1]["w"]) == 3


def test_the_first_steps_are_dense_and_count_as_steps() -> None:
    ranks = group(2, dense_steps=2)
    for step in range(3):
        mine = [{"w": random(10 * step + k, 12, 12)} for k in range(2)]
        reduced, left = ranks.step(mine)[0]
        exact = torch.allclose(left["w"], (mine[0]["w"] + mine[1]["w"]) / 2, rtol=1e-12)
        assert exact == (step < 2)
        assert (reduced.decompress is None) == (step < 2)
        if step == 1:
            assert ranks.reducers[0].ledger.sent == {"matrices": 0, "rest": 2 * 8 * 144}


@pytest.mark.parametrize("where", ["w", "b"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_stops_every_rank_and_spoils_nothing(where, value) -> None:
    ranks, twin = group(3), group(3)
    steps = [[{"w": random(10 * s + k, 9, 14), "b": random(50 + 10 * s + k, 5)} for k in range(3)] for s in range(3)]
    ranks.step(steps[0])
    twin.step(steps[0])
    bad = [{name: x.clone() for name, x in mine.items()} for mine in steps[1]]
    bad[1][where].view(-1)[3] = value
    for reduced, _ in ranks.step(bad):
        assert reduced.finite is False
        assert reduced.norm_squared == float("inf")
    for (_, left), (_, expected) in zip(ranks.step(steps[2]), twin.step(steps[2]), strict=True):
        assert torch.equal(left["w"], expected["w"])
        assert torch.equal(left["b"], expected["b"])


def test_gradients_of_zeros_do_no_harm() -> None:
    """An unused layer, then a used one: its Q is made of nothing and recovers."""
    ranks = group(2)
    for _ in range(2):
        for reduced, left in ranks.step([{"w": torch.zeros(8, 10, dtype=torch.float64)}] * 2):
            assert reduced.finite
            assert not left["w"].any()
    mean = low(0, 8, 10, 2)
    for _ in range(2):
        answers = ranks.step([{"w": mean}] * 2)
    total = answers[0][1]["w"] + ranks.reducers[0]._errors["w"]
    assert float(answers[0][1]["w"].norm()) > 1
    assert total.isfinite().all()


@pytest.mark.parametrize("size", [4, 2, 1])
def test_a_saved_state_goes_on_in_a_group_of_any_size(size) -> None:
    before = group(4)
    given = torch.zeros(10, 16, dtype=torch.float64)
    applied = torch.zeros_like(given)
    for step in range(3):
        mine = [random(10 * step + k, 10, 16) for k in range(4)]
        given += sum(mine) / 4
        applied += before.step([{"w": x} for x in mine])[0][1]["w"]
    states = before.states()
    for state in states:
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])
    after = group(size, seed=5)
    after.each(lambda k, r: r.load_state_dict(states[k]))
    if size > 1:
        close(after.states()[0]["error/w"], states[0]["error/w"])  # also before the first step
    mine = [random(100 + k, 10, 16) for k in range(size)]
    given += sum(mine) / size
    answers = after.step([{"w": x} for x in mine])
    left = sum(r._errors.get("w", torch.zeros(())) for r in after.reducers) / size
    close(applied + answers[0][1]["w"] + left, given)
    if size == 4:
        for (_, one), (_, two) in zip(answers, before.step([{"w": x} for x in mine]), strict=True):
            assert torch.equal(one["w"], two["w"])
        assert [int(x) for x in after.states()[0].values() if x.ndim == 0] == [
            int(x) for x in before.states()[0].values() if x.ndim == 0
        ]


def no_longer_compressed():
    """Return a group that sends whole what the group it goes on from had compressed, and what that left to apply."""
    before = group(2)
    mine = [random(k, 10, 16) for k in range(2)]
    applied = before.step([{"w": x} for x in mine])[0][1]["w"]
    states = before.states()
    after = group(2, min_elements=1000)
    after.each(lambda k, r: r.load_state_dict(states[k]))
    return after, (mine[0] + mine[1]) / 2 - applied


def test_a_matrix_that_is_no_longer_compressed_gets_what_was_left() -> None:
    after, left = no_longer_compressed()
    close(after.step([{"w": torch.zeros(10, 16, dtype=torch.float64)}] * 2)[0][1]["w"], left)


def test_what_was_left_outlives_an_update_that_is_skipped() -> None:
    after, left = no_longer_compressed()
    zeros = torch.zeros(10, 16, dtype=torch.float64)
    after.each(lambda k, r: r.reduce(grads({"w": zeros.clone()}), "the room").decompress(False))
    assert all("error/w" in state for state in after.states())
    close(after.step([{"w": zeros}] * 2)[0][1]["w"], left)
    assert not any("error/w" in state for state in after.states())


def test_another_rank_draws_its_factors_anew() -> None:
    before, after = group(2), group(2, rank=5)
    mine = [{"w": random(k, 12, 16)} for k in range(2)]
    before.step(mine)
    states = before.states()
    after.each(lambda k, r: r.load_state_dict(states[k]))
    assert torch.linalg.matrix_rank(after.step(mine)[0][1]["w"]) == 5


def test_a_state_of_another_model_is_refused() -> None:
    before = group(2)
    before.step([{"w": random(k, 12, 16)} for k in range(2)])
    state = before.states()[0]
    for tensors, said in (
        ({"v": random(0, 12, 16)}, "state of 'w' belongs to no gradient here"),
        ({"w": random(0, 12, 18)}, "'w' has 192 values and its gradient 216"),
    ):
        alone = PowerSgd(CONFIG, exchange=lambda _: Exchange(Room(1), 0))
        alone.load_state_dict(state)
        with pytest.raises(BadRun, match=said):
            alone.reduce(grads(tensors), None)


def test_one_process_is_left_alone() -> None:
    reducer = PowerSgd(CONFIG)
    x = {"w": random(0, 12, 16), "b": random(1, 3)}
    kept = {name: y.clone() for name, y in x.items()}
    reduced = reducer.reduce(grads(x), None)
    assert reduced.decompress is None
    assert reduced.norm_squared == pytest.approx(sum(float(y.square().sum()) for y in kept.values()))
    assert all(torch.equal(x[name], kept[name]) for name in x)
    assert reducer.ledger.sent == {"matrices": 0, "rest": 0}
    x["b"][0] = float("nan")
    assert reducer.reduce(grads(x), None).finite is False


def test_a_reduction_left_open_is_an_error() -> None:
    ranks = group(2)
    mine = {"w": random(0, 12, 16)}
    ranks.each(lambda k, r: r.reduce(grads({"w": mine["w"].clone()}), "the room"))
    with pytest.raises(RuntimeError, match="still open"):
        ranks.reducers[0].reduce(grads(mine), "the room")
    with pytest.raises(RuntimeError, match="still open"):
        ranks.reducers[0].state_dict()


def test_gradients_that_lie_otherwise_in_memory() -> None:
    mine = [random(k, 16, 3, 4, 4) for k in range(2)]
    plain = group(2).step([{"w": x} for x in mine])
    last = [x.contiguous(memory_format=torch.channels_last) for x in mine]
    ranks = group(2)

    def do(rank, reducer):
        reduced = reducer.reduce(grads({"w": last[rank]}), "the room")
        reduced.decompress(True)

    ranks.each(do)
    assert not last[0].is_contiguous()
    close(last[0], plain[0][1]["w"])


def test_the_seed_decides_the_first_factors_alike_on_every_rank() -> None:
    mine = [{"w": random(k, 12, 16)} for k in range(2)]
    one, two, three = (group(2, seed=seed).step(mine)[1][1]["w"] for seed in (3, 3, 4))
    assert torch.equal(one, two)
    assert not torch.allclose(one, three)


def test_options_say_it() -> None:
    from types import SimpleNamespace

    reducer = build(SimpleNamespace(reducer="powersgd:rank=2,dense_steps=7", seed=11))
    assert (reducer.config.rank, reducer.config.dense_steps, reducer.ledger.seed) == (2, 7, 11)
    assert build(SimpleNamespace(reducer="powersgd", seed=None)).config == Config()

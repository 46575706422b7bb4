"""DALL-E's PowerSGD, step by step, with ranks as threads (check 12 of the paper's numbers)."""

import attrs
import numpy as np
import pytest
import torch
from powersgd_fakes import Ranks, grads, low, random, spread

from zoo_powersgd import wire
from zoo_powersgd.configs import PowerSgdDalle as Config
from zoo_powersgd.dalle import PowerSgdDalle, build

CONFIG = Config(rank=3, min_saving=1.0, format="full")
SIXTEEN = attrs.evolve(CONFIG, format="1-6-9")


def group(size: int = 4, config: Config = CONFIG, seed: int = 0, **changes) -> Ranks:
    return Ranks(PowerSgdDalle, attrs.evolve(config, **changes), size, seed)


def close(a, b, tolerance=1e-11):
    torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def buffers(ranks: Ranks, name: str) -> list[torch.Tensor]:
    return [r._format.unpack(r._buffers[name], torch.zeros(())) for r in ranks.reducers]


@pytest.mark.parametrize("shape", [(20, 31), (31, 20), (16, 3, 3, 3)])
@pytest.mark.parametrize(("epsilon", "tolerance"), [(0.0, 1e-11), (1e-12, 1e-9), (1e-6, 1e-4)])
def test_a_rank_as_high_as_the_true_one_gives_the_exact_mean(shape, epsilon, tolerance) -> None:
    """Each machine's gradient is of full rank; their mean is not. Epsilon turns the columns a little."""
    mean = low(0, shape[0], int(np.prod(shape[1:])), 3)
    answers = group(epsilon=epsilon).step([{"w": x.view(shape)} for x in spread(mean, 4)])
    for reduced, left in answers:
        close(left["w"], mean.view(shape), tolerance)
        assert reduced.norm_squared == pytest.approx(float(mean.square().sum()), rel=tolerance)


def test_epsilon_keeps_columns_apart_where_the_rank_is_higher_than_the_true_one() -> None:
    mean = low(0, 20, 31, 3)
    for _, left in group(rank=9).step([{"w": mean}] * 4):
        close(left["w"], mean, 1e-4)


def test_in_sixteen_bits_it_is_exact_to_their_nine() -> None:
    mean = low(0, 20, 31, 3).float() / 30
    parts = spread(30 * mean.double(), 4)
    for reduced, left in group(config=SIXTEEN).step([{"w": x.float() / 30} for x in parts]):
        assert float((left["w"] - mean).norm() / mean.norm()) < 2.0**-7
        assert reduced.norm_squared == pytest.approx(float(mean.square().sum()), rel=2.0**-7)


def reference(bs, q, epsilon):
    """Return steps (3) to (7) of the paper's appendix E for the machines' buffers, in numpy."""
    p = sum(b @ q for b in bs) / len(bs)
    p = p / (np.linalg.norm(p) / np.sqrt(p.shape[1]))
    p, _ = np.linalg.qr(p + epsilon * np.eye(*p.shape))
    return p, sum(b.T @ p for b in bs)


def test_it_is_the_papers_algorithm() -> None:
    size, steps = 3, 6
    ranks = group(size, epsilon=1e-3)
    shapes = {"wide": (12, 17), "tall": (19, 11)}
    held = {name: [np.zeros(shape) for _ in range(size)] for name, shape in shapes.items()}
    fixed = None
    for step in range(steps):
        mine = [
            {n: random(100 * step + 10 * k + i, *s) for i, (n, s) in enumerate(shapes.items())} for k in range(size)
        ]
        answers = ranks.step(mine)
        qs = {name: x.clone() for name, x in ranks.reducers[1]._factors.items()}
        if fixed is not None:
            assert all(torch.equal(qs[name], fixed[name]) for name in qs)  # never updated
        fixed = qs
        norm = 0.0
        for name in shapes:
            flip = (lambda x: x.T) if name == "tall" else (lambda x: x)
            bs = [flip(held[name][k] + mine[k][name].numpy() / size) for k in range(size)]
            p, q = reference(bs, qs[name].numpy(), 1e-3)
            norm += np.square(q).sum()
            for k, (_, left) in enumerate(answers):
                held[name][k] = flip(bs[k] - p @ q.T / size)
                close(left[name], torch.from_numpy(flip(p @ q.T).copy()))
                close(buffers(ranks, name)[k], torch.from_numpy(held[name][k].copy()))
        for reduced, _ in answers:
            assert reduced.norm_squared == pytest.approx(norm, rel=1e-11)


def test_a_sixteen_bit_buffer_is_local_less_decompressed_over_machines() -> None:
    """To the bit: both sums are rounded to the format, and nothing else is."""
    size = 4
    ranks = group(size, SIXTEEN)
    held = [torch.zeros(12, 17) for _ in range(size)]
    for step in range(4):
        mine = [random(10 * step + k, 12, 17, dtype=torch.float32) / 50 for k in range(size)]
        answers = ranks.step([{"w": x} for x in mine])
        for k, (_, left) in enumerate(answers):
            local = wire.OneSixNine.round_(mine[k] / size + held[k])
            held[k] = wire.OneSixNine.round_(local - left["w"] / size)
            assert torch.equal(buffers(ranks, "w")[k], held[k])
            assert ranks.reducers[k]._buffers["w"].dtype == torch.int16


@pytest.mark.parametrize(("config", "tolerance"), [(CONFIG, 1e-12), (SIXTEEN, 2e-3)])
def test_nothing_is_lost_over_time(config, tolerance) -> None:
    """Sum of the buffers + what was applied = sum of the mean gradients."""
    size = 3
    ranks = group(size, config)
    applied, given = torch.zeros(14, 9, dtype=torch.float64), torch.zeros(14, 9, dtype=torch.float64)
    for step in range(8):
        mine = [random(10 * step + k, 14, 9) / 50 for k in range(size)]
        applied += ranks.step([{"w": x} for x in mine])[0][1]["w"]
        given += sum(mine) / size
    left = sum(buffers(ranks, "w"))
    assert float(left.norm()) > 0.1 * float(given.norm())
    assert float((applied + left - given).norm()) < tolerance * float(given.norm())


@pytest.mark.parametrize(("config", "tolerance"), [(CONFIG, 1e-12), (SIXTEEN, 2.0**-9)])
def test_the_norm_of_the_factor_is_that_of_the_mean_gradient_and_replicas_are_equal(config, tolerance) -> None:
    mine = [
        {"w": random(k, 20, 30) / 50, "b": random(k + 50, 7) / 50, "t": random(k + 90, 30, 4) / 50} for k in range(4)
    ]
    answers = group(config=config).step(mine, plain=("t",))
    for reduced, left in answers:
        assert reduced.norm_squared == pytest.approx(sum(float(x.square().sum()) for x in left.values()), rel=tolerance)
        assert all(torch.equal(left[name], answers[0][1][name]) for name in left)
        close(left["b"], sum(x["b"] for x in mine) / 4)
        close(left["t"], sum(x["t"] for x in mine) / 4)
    assert torch.linalg.matrix_rank(answers[0][1]["w"]) == 3


@pytest.mark.parametrize("config", [CONFIG, SIXTEEN])
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_a_bad_gradient_is_not_added_and_the_other_machines_keep_theirs(config, value) -> None:
    """Steps (2), (10), (12), matrix by matrix: the step is skipped on all ranks; only what was good is settled."""
    ranks = group(3, config)
    first = [{"bad": random(k, 9, 14) / 50, "good": random(30 + k, 8, 8) / 50} for k in range(3)]
    ranks.step(first)
    before = {name: buffers(ranks, name) for name in ("bad", "good")}
    second = [{name: x / 2 for name, x in mine.items()} for mine in first]
    second[1]["bad"][2, 3] = value
    answers = ranks.step(second)
    assert [reduced.finite for reduced, _ in answers] == [False] * 3
    assert [reduced.norm_squared for reduced, _ in answers] == [float("inf")] * 3
    after = {name: buffers(ranks, name) for name in ("bad", "good")}
    assert torch.equal(after["bad"][1], before["bad"][1])
    for k in (0, 2):
        close(after["bad"][k], before["bad"][k] + second[k]["bad"] / 3, 2e-4)
    dropped = sum(before["good"][k] + second[k]["good"] / 3 - after["good"][k] for k in range(3))
    assert torch.linalg.matrix_rank(dropped, rtol=2e-2) == 3  # the low-rank part went with the skipped update
    assert all(x.isfinite().all() for found in after.values() for x in found)
    assert all(reduced.finite for reduced, _ in ranks.step(first))


def test_a_buffer_is_emptied_only_where_it_is_spoilt_itself() -> None:
    """A finite gradient too large for 1-6-9: infinite once stored."""
    ranks = group(3, SIXTEEN)
    small = [{"w": random(k, 9, 14) / 50} for k in range(3)]
    ranks.step(small)
    before = buffers(ranks, "w")
    large = [{"w": x["w"].clone()} for x in small]
    large[2]["w"][0, 0] = 100.0
    assert [reduced.finite for reduced, _ in ranks.step(large)] == [False] * 3
    after = buffers(ranks, "w")
    assert not after[2].any()
    for k in (0, 1):
        close(after[k], before[k] + small[k]["w"] / 3, 2e-4)


def test_a_bad_dense_gradient_skips_the_update_on_every_rank() -> None:
    ranks = group(2)
    mine = [{"w": random(k, 9, 14), "b": random(50 + k, 5)} for k in range(2)]
    mine[0]["b"][1] = float("inf")
    for reduced, _ in ranks.step(mine):
        assert reduced.finite is False
        assert reduced.norm_squared == float("inf")
    assert all(x.isfinite().all() for x in buffers(ranks, "w"))


def test_sums_that_are_too_large_are_clamped_and_come_later() -> None:
    """Q' beyond 16 is clamped; what was cut off stays in the buffers. A smaller scale keeps it whole."""
    mine = [{"w": 6 * low(3, 20, 31, 1).float()}] * 2
    exact = mine[0]["w"]
    clamped, whole = group(2, SIXTEEN, rank=1), group(2, SIXTEEN, rank=1, q_scale=2.0**-5)
    cut, kept = clamped.step(mine)[0], whole.step(mine)[0]
    assert cut[0].finite
    assert float(kept[1]["w"].norm() / exact.norm()) == pytest.approx(1, abs=2.0**-7)
    assert kept[0].norm_squared == pytest.approx(float(exact.square().sum()), rel=2.0**-7)
    assert float(cut[1]["w"].norm()) < 0.9 * float(exact.norm())
    left = sum(buffers(clamped, "w"))
    assert float((cut[1]["w"] + left - exact).norm() / exact.norm()) < 2.0**-8


@pytest.mark.parametrize("change", [{"p_scale": 2.0**-7}, {"q_scale": 2.0**5}])
def test_scales_change_nothing_but_the_range(change) -> None:
    mine = [{"w": random(k, 20, 31)} for k in range(2)]
    close(group(2, **change).step(mine)[0][1]["w"], group(2).step(mine)[0][1]["w"])


def test_gradients_of_zeros_do_no_harm() -> None:
    for config in (CONFIG, SIXTEEN):
        ranks = group(2, config)
        for reduced, left in ranks.step([{"w": torch.zeros(8, 10)}] * 2):
            assert (reduced.finite, reduced.norm_squared) == (True, 0.0)
            assert not left["w"].any()
        mean = low(0, 8, 10, 2).float() / 30
        for _, left in ranks.step([{"w": mean}] * 2):
            close(left["w"], mean, 2e-2)


@pytest.mark.parametrize("config", [CONFIG, SIXTEEN])
@pytest.mark.parametrize("size", [4, 2, 1])
def test_the_sum_of_the_buffers_goes_on_in_a_group_of_any_size(config, size) -> None:
    exact = config.format == "full"
    before = group(4, config)
    for step in range(3):
        before.step([{"w": random(10 * step + k, 10, 16) / 50} for k in range(4)])
    total = sum(buffers(before, "w"))
    states = before.states()
    for state in states:
        close(state["error/w"], total.to(state["error/w"].dtype), 1e-12 if exact else 1e-6)
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])
    for held in buffers(before, "w"):  # the running job shares them out as well
        close(held, total.to(held.dtype) / 4, 1e-12 if exact else 1e-3)
    after = group(size, config, seed=9)
    after.each(lambda k, r: r.load_state_dict(states[k]))
    mine = [{"w": random(100 + k, 10, 16) / 50} for k in range(size)]
    answers = after.step(mine)
    left = sum(buffers(after, "w")) if size > 1 else torch.zeros(())
    given = total + sum(x["w"] for x in mine) / size
    close(answers[0][1]["w"] + left, given.to(torch.float64), 1e-12 if exact else 3e-3)
    if size == 4:
        for (_, one), (_, two) in zip(answers, before.step(mine), strict=True):
            assert torch.equal(one["w"], two["w"])
    assert after.reducers[0].ledger.seed == 0


def test_shards_have_their_share_of_the_rank() -> None:
    whole = low(0, 16, 20, 8)
    answers = group(2, rank=4).step([{"w": whole[:8]}] * 2, shapes={"w": (16, 20)}, axis=0)
    assert torch.linalg.matrix_rank(answers[0][1]["w"]) == 2
    flat = group(2, rank=4).step([{"w": whole[:8].reshape(-1)}] * 2, shapes={"w": (16, 20)}, axis=0)
    assert torch.equal(flat[0][1]["w"].view(8, 20), answers[0][1]["w"])


def test_one_process_is_left_alone() -> None:
    reducer = PowerSgdDalle(Config())
    x = random(0, 300, 400)
    kept = x.clone()
    reduced = reducer.reduce(grads({"w": x}), None)
    assert reduced.decompress is None
    assert torch.equal(x, kept)


def test_a_reduction_left_open_is_an_error() -> None:
    ranks = group(2)
    ranks.each(lambda k, r: r.reduce(grads({"w": random(0, 12, 16)}), "the room"))
    with pytest.raises(RuntimeError, match="still open"):
        ranks.reducers[0].reduce(grads({"w": random(0, 12, 16)}), "the room")
    with pytest.raises(RuntimeError, match="still open"):
        ranks.reducers[0].state_dict()


def test_options_say_it() -> None:
    from types import SimpleNamespace

    reducer = build(SimpleNamespace(reducer="powersgd-dalle:rank=16,format=full", seed=11))
    assert (reducer.config, reducer.ledger.seed) == (Config(rank=16, format="full"), 11)

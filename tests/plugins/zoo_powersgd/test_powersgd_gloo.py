"""Both reducers over real process groups: four processes, started once, and against torch's own hook."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed as dist

from zoo.interfaces import Grad, Shard
from zoo_powersgd import configs
from zoo_powersgd.dalle import PowerSgdDalle
from zoo_powersgd.original import PowerSgd

SIZE = 4
SHAPES = {"wide": (24, 40), "bias": (41,), "tall": (40, 12), "conv": (16, 8, 3, 3), "table": (30, 8)}
VARIANTS = {
    "original": (PowerSgd, configs.PowerSgd(rank=3, dense_steps=1, min_elements=1, min_saving=1.0)),
    "sixteen": (PowerSgdDalle, configs.PowerSgdDalle(rank=3, min_saving=1.0)),
    "full": (PowerSgdDalle, configs.PowerSgdDalle(rank=3, min_saving=1.0, format="full")),
}
STEPS = 4


def drawn(seed: int, *shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) / 30


def given(rank: int, step: int) -> dict[str, torch.Tensor]:
    return {name: drawn(1000 * step + 10 * rank + i, *shape) for i, (name, shape) in enumerate(SHAPES.items())}


def grads(tensors: dict[str, torch.Tensor]) -> list[Grad]:
    return [Grad(n, x, SHAPES[n], None, None, x.ndim >= 2 and n != "table") for n, x in tensors.items()]


def one_step(reducer, tensors, group):
    """Reduce and settle; return what is left and what was said."""
    reduced = reducer.reduce(grads(tensors), group)
    if reduced.decompress is not None:
        reduced.decompress(reduced.finite)
    return {**tensors, "norm": reduced.norm_squared, "finite": reduced.finite, "sent": reduced.sent}


def variant(name: str, rank: int, pairs) -> dict:
    """Train a few steps, meet a bad value, save, go on; then go on from the state in groups of two."""
    kind, config = VARIANTS[name]
    reducer = kind(config, seed=1)
    said = {"steps": [], "sent": []}
    for step in range(STEPS):
        before = dict(reducer.ledger.sent)
        said["steps"].append(one_step(reducer, given(rank, step), dist.group.WORLD))
        said["sent"].append({k: n - before[k] for k, n in reducer.ledger.sent.items()})
    bad = given(rank, STEPS)
    if rank == 2:
        bad["tall"][3, 4] = float("nan")
    said["bad"] = one_step(reducer, bad, dist.group.WORLD)
    state = reducer.state_dict()
    torch.save(state, buffer := Path(sys.argv[3]) / f"state-{name}-{rank}.pt")
    said["next"] = one_step(reducer, given(rank, 7), dist.group.WORLD)
    said["state"] = torch.load(buffer, weights_only=True)
    for who, group in (("again", dist.group.WORLD), ("halved", pairs)):
        fresh = kind(config, seed=8)
        fresh.load_state_dict(said["state"])
        said[who] = one_step(fresh, given(rank, 7), group)
        said[f"{who} state"] = fresh.state_dict()
    return said


class Bucket:
    """A gradient bucket of one matrix, as torch's hook reads it."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix = matrix

    def index(self):
        return 0

    def buffer(self):
        return self.matrix.view(-1)

    def gradients(self):
        return [self.matrix]

    def is_last(self):
        return True


def torch_hook(rank: int, shape=(18, 26), steps=5) -> dict:
    """Return five steps of one matrix by torch's powerSGD_hook and by ours, from one Q, in float64."""
    from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as theirs

    q = drawn(77, max(shape), 3, dtype=torch.float64)
    state = theirs.PowerSGDState(None, matrix_approximation_rank=3, start_powerSGD_iter=2, min_compression_rate=1)
    state.iter = 2
    state.p_memory_dict[0] = torch.empty(shape[0] * 3, dtype=torch.float64)
    state.q_memory_dict[0] = q.flatten().clone()
    ours = PowerSgd(VARIANTS["original"][1])
    ours.load_state_dict({"steps": 9, "seed": 0, "sent/matrices": 0, "sent/rest": 0, "q/w": q})
    said = {"theirs": [], "ours": []}
    for step in range(steps):
        mine = drawn(500 + 10 * step + rank, *shape, dtype=torch.float64)
        said["theirs"].append(theirs.powerSGD_hook(state, Bucket(mine.clone())).wait().clone())
        x = mine.clone()
        ours.reduce([Grad("w", x, shape, None, None, True)], dist.group.WORLD).decompress(True)
        said["ours"].append(x)
    said["errors"] = (state.error_dict[0].view(shape).clone(), ours._errors["w"].clone())
    return said


def hybrid(rank: int, ordinals) -> dict:
    """Reduce row shards of a matrix among the ranks of one ordinal on two machines; the mean is of low rank."""
    ordinal, machine = rank % 2, rank // 2
    left, right = drawn(5, 20, 4, dtype=torch.float64), drawn(6, 4, 30, dtype=torch.float64)
    noise = drawn(7, 20, 30, dtype=torch.float64) * (1 if machine else -1)
    mine = (left @ right + noise)[10 * ordinal : 10 * ordinal + 10].reshape(-1).clone()
    config = configs.PowerSgd(rank=8, dense_steps=0, min_elements=1, min_saving=1.0)
    reduced = PowerSgd(config).reduce([Grad("w", mine, (20, 30), 0, None, True)], ordinals)
    reduced.decompress(True)
    return {"left": mine.view(10, 30), "expected": (left @ right)[10 * ordinal : 10 * ordinal + 10],
            "norm": reduced.norm_squared}  # fmt: skip


def one_rank(rank: int, folder: str) -> None:
    """Be one process of the group."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=SIZE)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])][rank // 2]
    ordinals = [dist.new_group([0, 2]), dist.new_group([1, 3])][rank % 2]
    said = {name: variant(name, rank, pairs) for name in VARIANTS}
    said["hook"] = torch_hook(rank)
    said["hybrid"] = hybrid(rank, ordinals)
    torch.save(said, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # the backend's threads may abort on the way out


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Return what every rank said."""
    folder = tmp_path_factory.mktemp("gloo")
    command = [sys.executable, __file__]
    ranks = [subprocess.Popen([*command, str(rank), str(SIZE), str(folder)]) for rank in range(SIZE)]
    try:
        assert [process.wait(timeout=300) for process in ranks] == [0] * SIZE
    finally:
        for process in ranks:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(SIZE)]


def equal(one: dict, two: dict) -> bool:
    return all(torch.equal(x, two[name]) if isinstance(x, torch.Tensor) else x == two[name] for name, x in one.items())


@pytest.mark.parametrize("name", VARIANTS)
def test_replicas_are_equal_to_the_bit(said, name) -> None:
    for step in range(STEPS):
        assert all(equal(said[0][name]["steps"][step], other[name]["steps"][step]) for other in said[1:])
    assert all(equal(said[0][name]["state"], other[name]["state"]) for other in said[1:])
    assert all(equal(said[0][name]["next"], other[name]["next"]) for other in said[1:])


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_sent_whole_is_the_mean_and_the_norm_is_true(said, name) -> None:
    for step in range(STEPS):
        answer = said[0][name]["steps"][step]
        mean = {n: sum(given(k, step)[n].double() for k in range(SIZE)) / SIZE for n in SHAPES}
        dense = step == 0 and name == "original"
        for n in SHAPES if dense else ("bias", "table"):
            torch.testing.assert_close(answer[n].double(), mean[n], rtol=1e-5, atol=1e-7)
        exact = sum(float(answer[n].double().square().sum()) for n in SHAPES)
        assert answer["norm"] == pytest.approx(exact, rel=2.0**-9 if name == "sixteen" else 1e-5)
        if not dense:
            assert torch.linalg.matrix_rank(answer["conv"].view(16, 72), rtol=1e-4) == 3
            assert 0.05 < float(answer["wide"].norm() / mean["wide"].norm()) < 1.5


@pytest.mark.parametrize("name", VARIANTS)
def test_bytes_sent_are_what_the_planner_says(said, name) -> None:
    shards = [Shard(shape=s, local=s, matrix=len(s) >= 2 and n != "table") for n, s in SHAPES.items()]
    traffic = VARIANTS[name][1].cost(shards, SIZE)
    assert 0 < traffic.matrices < traffic.matrices_dense
    for rank in said:
        for step, sent in enumerate(rank[name]["sent"]):
            assert rank[name]["steps"][step]["sent"] == sum(sent.values())
            if step < VARIANTS[name][1].dense_steps:
                assert sent == {"matrices": 0, "rest": traffic.start_up}
            else:
                assert sent == {"matrices": traffic.matrices, "rest": traffic.rest}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_bad_value_on_one_rank_stops_all(said, name) -> None:
    assert [(rank[name]["bad"]["finite"], rank[name]["bad"]["norm"]) for rank in said] == [(False, float("inf"))] * SIZE
    assert all(x.isfinite().all() for rank in said for x in rank[name]["state"].values())
    assert all(rank[name]["next"]["finite"] for rank in said)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_resumed_group_goes_on_as_the_old_one_would_have(said, name) -> None:
    for rank in said:
        assert equal(rank[name]["next"], rank[name]["again"])
        assert {n for n in rank[name]["state"] if n.startswith("error/")} == {"error/wide", "error/tall", "error/conv"}
        assert int(rank[name]["state"]["steps"]) == STEPS + 1


@pytest.mark.parametrize("name", VARIANTS)
def test_a_state_of_four_ranks_goes_on_in_groups_of_two(said, name) -> None:
    """What was not yet applied, plus the mean of the two ranks' gradients, is applied or still left."""
    for rank, other in ((0, 1), (2, 3)):
        mine = said[rank][name]
        for n in ("wide", "tall", "conv"):
            mean = (given(rank, 7)[n] + given(other, 7)[n]).double() / 2
            expected = mine["state"][f"error/{n}"].double() + mean
            left = mine["halved state"][f"error/{n}"].double()
            off = float((mine["halved"][n].double() + left - expected).norm() / expected.norm())
            assert off < (2.0**-9 if name == "sixteen" else 1e-5)
            assert float(left.norm()) > 0.1 * float(expected.norm())
        assert equal(mine["halved"], said[other][name]["halved"])


def test_it_is_what_torchs_hook_computes(said) -> None:
    for rank in said:
        hook = rank["hook"]
        for theirs, ours in zip(hook["theirs"], hook["ours"], strict=True):
            torch.testing.assert_close(ours.flatten(), theirs.flatten(), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(*hook["errors"], rtol=1e-9, atol=1e-11)
        assert float(hook["errors"][0].norm()) > 0.1


def test_shards_are_reduced_among_the_ranks_that_hold_them(said) -> None:
    for rank in said:
        torch.testing.assert_close(rank["hybrid"]["left"], rank["hybrid"]["expected"], rtol=1e-10, atol=1e-12)
        assert rank["hybrid"]["norm"] == pytest.approx(float(rank["hybrid"]["expected"].square().sum()))


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), sys.argv[3])

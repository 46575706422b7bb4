"""The end of an update, in one process; between processes it is tested with the DeepSpeed engine."""

import math

import pytest
import torch

from zoo.interfaces import Grad, Reduced
from zoo.train import reduction
from zoo.train.copies import Copies
from zoo.train.reduction import Mean, blame, clip, state_from, state_pieces
from zoo.train.shards import Shards, write
from zoo.train.world import World

TRUE = torch.ones((), dtype=torch.bool)


def grad(name, values, block=None):
    x = torch.tensor(values)
    return Grad(name, x, tuple(x.shape), None, block, False)


class Remembering:
    """A reducer with a state: errors of two gradients, a counter, a factor."""

    def __init__(self, state=None):
        self.state = state or {}

    def reduce(self, grads, group):
        return Reduced(4.0, True, lambda applied: self.state.update(applied=applied), 12)

    def state_dict(self):
        return self.state


def test_a_mean_over_one_process_changes_nothing_and_knows_the_norm():
    grads = [grad("a", [3.0, 0.0]), grad("b", [[4.0]])]
    found = Mean().reduce(grads, None)
    assert (found.norm_squared, found.finite, found.sent) == (25.0, True, 0)
    assert grads[0].tensor.tolist() == [3.0, 0.0]
    assert Mean().reduce([], None).norm_squared == 0.0


def test_tensors_go_in_buckets_and_a_large_one_by_itself(monkeypatch):
    monkeypatch.setattr(reduction, "MEAN", 10)
    sizes = [[len(x) for x in bucket] for bucket in reduction._buckets([torch.zeros(n) for n in (4, 6, 1, 30, 2, 3)])]
    assert sizes == [[4, 6], [1], [30], [2, 3]]


@pytest.mark.parametrize(("value", "lost"), [(math.inf, False), (math.nan, False), (1.0, True)])
def test_what_is_not_finite_is_not_made(value, lost):
    found = reduction.reduce(Mean(), [grad("a", [value])], Copies(), ~TRUE if lost else TRUE, alike=True)
    assert not found.finite
    assert found.loss is not lost
    assert found.norm == (1.0 if lost else math.inf)


def test_what_a_reducer_leaves_to_do_is_handed_on():
    reducer = Remembering()
    found = reduction.reduce(reducer, [], Copies(), TRUE, alike=True)
    assert (found.norm, found.finite, found.sent) == (2.0, True, 12)
    found.decompress(False)
    assert reducer.state == {"applied": False}


def test_a_gradient_is_clipped_as_torch_does():
    mine, theirs = (torch.tensor([3.0, 4.0], requires_grad=True) for _ in range(2))
    mine.grad, theirs.grad = torch.tensor([30.0, 40.0]), torch.tensor([30.0, 40.0])
    torch.nn.utils.clip_grads_with_norm_([theirs], 2.0, torch.tensor(50.0))
    clip([mine.grad], 50.0, 2.0)
    assert torch.equal(mine.grad, theirs.grad)
    for most in (None, 60.0):
        before = mine.grad.clone()
        clip([mine.grad], 50.0, most)
        assert torch.equal(mine.grad, before)


def test_blame_names_the_first_block_and_counts_the_rest():
    bad = [grad("w", [math.nan], "blocks.1"), grad("v", [math.inf], "blocks.1"), grad("head", [math.inf])]
    assert blame([grad("a", [1.0])], World()) == ""
    assert blame(bad[:2], World()) == "blocks.1"
    assert blame(bad, World()) == "blocks.1 and 1 more"


def saved(folder, shards, spans):
    """A checkpoint of a reducer with as many shards; the error of "w" is 0, 1, 2 ..., the last shard keeps none."""
    for shard, (start, stop) in enumerate(spans):
        state = {"steps": torch.tensor(7), "q/w": torch.full((2, 2), float(shard))}
        if shard + 1 < shards or shards == 1:
            state["error/w"] = torch.arange(float(start), float(stop))
        here = Copies(shards=shards, shard=shard, count=2)
        pieces = state_pieces(Remembering(state), here, lambda name, at=(start, stop): at, lambda name: (2, 4))
        write(folder, shard, shards, pieces)
    return folder


def test_the_same_shards_get_all_of_it_back(tmp_path):
    saved(tmp_path, 2, [(0, 4), (4, 8)])
    with Shards(tmp_path) as found:
        state = state_from(found, Copies(shards=2, shard=1, count=2), lambda name: (4, 8))
    assert state["steps"] == 7
    assert torch.equal(state["q/w"], torch.ones(2, 2))
    assert state["error/w"].tolist() == [0.0] * 4  # the process had none: there is nothing to add


def test_other_shards_get_their_runs_of_the_errors_and_the_counters(tmp_path):
    saved(tmp_path, 2, [(0, 4), (4, 8)])
    with Shards(tmp_path) as found:
        state = state_from(found, Copies(count=4), lambda name: (0, 8))
    assert set(state) == {"steps", "error/w"}
    assert state["error/w"].tolist() == [0.0, 1.0, 2.0, 3.0, 0.0, 0.0, 0.0, 0.0]
    (tmp_path / "one").mkdir()
    saved(tmp_path / "one", 1, [(0, 8)])
    with Shards(tmp_path / "one") as found:
        state = state_from(found, Copies(shards=3, shard=1), lambda name: (3, 6))
    assert state["error/w"].tolist() == [3.0, 4.0, 5.0]


def test_a_checkpoint_without_a_reducer_has_no_state_for_one(tmp_path):
    write(tmp_path, 0, 1, {})
    with Shards(tmp_path) as found:
        assert state_from(found, Copies(), lambda name: (0, 8)) == {}

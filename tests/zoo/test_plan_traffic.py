"""What is planned to be sent, against what a device that holds shards hands to a reducer. No processes are started."""

import math

import pytest
import torch

import zoo
from zoo import registry
from zoo.interfaces import Grad, Shard
from zoo.planning.plan import plan
from zoo.planning.traffic import shards_of
from zoo.train.engine import block_names
from zoo.train.reduction import Mean
from zoo.train.stage import Stage, key_of

SHARDS = COPIES = 2
REDUCERS = ["powersgd:dense_steps=0", "powersgd-dalle", "powersgd:rank=4,dense_steps=0,min_elements=64"]


@pytest.fixture(scope="module", params=["dalle", "dalle-tiny"])
def prior(request):
    """A system's name, and the stage of its prior, of which nothing is allocated."""
    return request.param, Stage(zoo.build(request.param, device="meta"), "prior")


def planned(name, **how):
    return plan(name, part="prior", devices=SHARDS * COPIES, per_node=SHARDS, batch=64, precision="fp32",
                storage="zoo", **how)  # fmt: skip


def gradients(stage, shards=SHARDS):
    """Return what the first process of a copy holds at stage 3: the first of equal runs of every parameter."""
    blocks, held = block_names(stage), []
    for name, p in stage.named_parameters():
        block = blocks.get(name)
        matrix = p.ndim >= 2 and (block is not None or not blocks)
        run = torch.empty(-(-p.numel() // shards), device="meta")
        held.append(Grad(name, run, tuple(p.shape), 0, block, matrix))
    return held


def shard(grad):
    return Shard(shape=grad.shape, local=tuple(grad.tensor.shape), axis=grad.axis, matrix=grad.matrix)


def test_every_shard_is_as_planned(prior):
    name, stage = prior
    made = planned(name, zero=3)
    grads = gradients(stage)
    assert list(shards_of(made.stage.cost, made.job)) == [shard(grad) for grad in grads]
    prefix = f"{key_of('prior')}."
    assert [w.name for w in made.stage.cost.weights] == [grad.name.removeprefix(prefix) for grad in grads]
    assert {w.block for w in made.stage.cost.weights} == {
        grad.block and grad.block.removeprefix(prefix) for grad in grads
    }


def test_the_plain_mean_sends_every_local_value_once_an_update(prior):
    name, stage = prior
    values = sum(grad.tensor.numel() for grad in gradients(stage))
    for accumulate in (1, 4):
        sizes = planned(name, zero=3, accumulate=accumulate).json()["traffic"]["between"]
        assert sizes == {"dense": 4 * values, "sent": 4 * values}
    assert Mean().cost(map(shard, gradients(stage)), COPIES).sent == 4 * values
    whole = sum(p.numel() for p in stage.parameters())
    between = planned(name, zero=2, shard="machine").json()["traffic"]["between"]["sent"]
    assert between == 4 * math.ceil(whole / SHARDS)


@pytest.mark.parametrize("reducer", REDUCERS)
def test_a_reducer_sends_what_is_planned(prior, reducer):
    name, stage = prior
    sizes = planned(name, zero=3, reducer=reducer).json()["traffic"]["between"]
    said = registry.reducer_config(reducer).cost(map(shard, gradients(stage)), COPIES)
    assert sizes == {"dense": said.dense, "sent": said.sent}
    assert 0 < sizes["sent"] <= sizes["dense"]  # equal where all is too small to be worth it


@pytest.mark.parametrize("zero", [1, 2])
def test_a_copy_in_one_process_sends_alike_at_every_stage(prior, zero):
    """Whole parameters, flattened at stages 1 and 2."""
    name, stage = prior
    how = {"part": "prior", "devices": COPIES, "per_node": 1, "batch": 64, "reducer": REDUCERS[0]}
    sent = plan(name, zero=zero, precision="fp32", **how).json()["traffic"]["between"]
    said = registry.reducer_config(REDUCERS[0]).cost(map(shard, gradients(stage, shards=1)), COPIES)
    assert sent == {"dense": said.dense, "sent": said.sent}
    assert sent == plan(name, zero=0, precision="fp32", **how).json()["traffic"]["between"]

"""Who shares a copy of the model, from what a launcher and the command say."""

import pytest
import torch
from train_fakes import options

from zoo.errors import ConfigError
from zoo.train import group
from zoo.train.copies import copies, machine
from zoo.train.world import World


def test_a_machine_is_what_the_launcher_says_unless_the_command_does():
    assert machine(8, None, {"LOCAL_WORLD_SIZE": "4"}) == 4  # torchrun
    assert machine(8, None, {"LOCAL_SIZE": "2"}) == 2  # deepspeed
    assert machine(8, None, {}) == 8
    assert machine(8, 2, {"LOCAL_WORLD_SIZE": "4"}) == 2
    assert machine(1, None, {"LOCAL_WORLD_SIZE": "4"}) == 1


def test_processes_that_make_no_whole_machines_are_refused_with_what_would():
    with pytest.raises(ConfigError, match="6 processes make no whole machines of 4; try --per-node 3"):
        machine(6, 4)


@pytest.mark.parametrize("zero", range(4))
def test_one_process_alone_is_the_only_copy(zero):
    alone = copies(World(), zero, options())
    assert (alone.shards, alone.count, alone.shard, alone.copy) == (1, 1, 0, 0)
    assert alone.inside is None
    assert alone.between is None


def test_a_reducer_is_refused_where_all_share_one_copy_by_command():
    with pytest.raises(ConfigError, match="--shard all there is one copy"):
        copies(World(), 3, options(reducer="powersgd", shard="all"))


class Unlike(World):
    """The first of three processes, of machines with two and with one."""

    size = 3

    def gather(self, value):
        return [2, 2, 1]


def test_machines_of_different_sizes_are_refused_where_something_is_sharded(monkeypatch):
    monkeypatch.setattr("zoo.train.copies.machine", lambda size, said: 2)
    with pytest.raises(ConfigError, match=r"different numbers of processes .*1 to rank 2, 2 to rank 0"):
        copies(Unlike(), 3, options())


def test_one_process_without_a_launcher_takes_the_first_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert group.device() == torch.device("cuda", 0)

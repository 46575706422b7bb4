"""Which devices share a copy of the model, and which reducers may work on what they hold."""

import pytest

from zoo.errors import ConfigError
from zoo.planning.jobs import job_of
from zoo.planning.layout import check_reducer, shard_of


@pytest.mark.parametrize(("zero", "shard", "reducer", "over"), [
    (1, None, None, "all"), (2, None, None, "all"), (3, None, None, "machine"),
    (1, None, "powersgd", "machine"), (2, None, "powersgd", "machine"), (3, None, "powersgd", "machine"),
    (1, "machine", None, "machine"), (3, "all", None, "all"),
])  # fmt: skip
def test_what_a_copy_is_sharded_over(zero, shard, reducer, over):
    assert shard_of(zero, shard, reducer) == over
    job = job_of(batch=8, devices=4, per_node=1 if reducer else 2, zero=zero, shard=shard, reducer=reducer)
    assert (job.shard, job.group) == (over, 4 if over == "all" else job.per_node)
    assert job.copies * job.group == 4


def test_at_stage_0_every_device_is_a_copy():
    for shard in (None, "machine", "all"):
        job = job_of(batch=8, devices=4, per_node=2, zero=0, shard=shard, reducer="powersgd")
        assert (job.group, job.copies, job.shards) == (1, 4, 1)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_reducers_want_whole_matrices(zero):
    check_reducer(zero, 4, None)
    check_reducer(zero, 1, "powersgd")
    if zero in (1, 2):
        with pytest.raises(ConfigError, match=f"at --zero {zero} the 4 processes .* cut through them: take --zero 3"):
            check_reducer(zero, 4, "powersgd")
    else:
        check_reducer(zero, 4, "powersgd")

"""The memory benchmark, without its training."""

import pytest

from zoo.bench import memory
from zoo.bench.command import BENCHES
from zoo.errors import DoesNotFit
from zoo.train.checkpoint import Checkpoints
from zoo.train.options import TrainOptions
from zoo.train.world import World


def test_it_plans_what_it_trains(tmp_path):
    assert BENCHES["memory"] == memory.__name__
    made = memory.planned()
    assert made.stage.cost.params == pytest.approx(0.5e9, rel=0.1)
    _, prior = (TrainOptions(**said) for said in memory.commands(tmp_path, memory.SIZE))
    job = made.job
    assert (prior.model, prior.part, prior.set) == (memory.MODEL, made.stage.part, memory.SIZE)
    assert (prior.batch, prior.zero, prior.precision, prior.recompute) == (job.batch, 3, job.precision, job.recompute)
    assert (job.devices, job.group, job.storage) == (memory.PROCESSES, memory.PROCESSES, "zoo")


def test_it_asks_for_room_first(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1 << 30)
    with pytest.raises(DoesNotFit, match=r"needs \d+\.\d GiB of free memory, and 1\.0 GiB are"):
        memory.measure()


def test_saving_is_marked_apart(tmp_path):
    marks: dict[str, int] = {}
    with memory.marking(marks):
        write = lambda folder: (folder / "state").write_text("x")  # noqa: E731
        Checkpoints(tmp_path).save(1, write, {}, World())
    assert (tmp_path / "step-00000001").is_dir()
    assert memory.resident("VmRSS") > 0
    assert 0 < marks["trained"] <= marks["saved"] <= memory.resident("VmHWM")

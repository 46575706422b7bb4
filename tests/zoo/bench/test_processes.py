"""The launcher of benchmarks: what processes are told, what is said when one fails, and that none is left."""

import json
import os
import time

import pytest
import torch
from torch import nn

from zoo.bench import processes, replicas


def test_processes_know_their_place_and_one_alone_knows_none(monkeypatch):
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("MASTER_ADDR", "elsewhere")
    told = [processes.environment(rank, 4, 1234) for rank in range(4)]
    assert [(one["RANK"], one["LOCAL_RANK"], one["WORLD_SIZE"]) for one in told] == [
        (str(r), str(r), "4") for r in range(4)
    ]
    assert {(one["MASTER_ADDR"], one["MASTER_PORT"], one["OMP_NUM_THREADS"]) for one in told} == {
        ("127.0.0.1", "1234", "1")
    }
    alone = processes.environment(0, 1, 0)
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR"} & set(alone)
    assert alone["OMP_NUM_THREADS"] == "1"


def test_every_process_runs(tmp_path):
    code = f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, os.environ['RANK']).touch()"
    processes.launch(3, ["-c", code])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2"]


FAILING = "import os, sys, time; r = os.environ['RANK']; r == '1' and sys.exit('no such luck'); time.sleep(60)"


def test_one_that_fails_ends_all_and_is_quoted(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    began = time.monotonic()
    with pytest.raises(processes.Failed, match=r"rank 1, exit code 1:\nno such luck"):
        processes.launch(2, ["-c", FAILING])
    assert time.monotonic() - began < 30


def test_too_long_is_a_failure():
    with pytest.raises(processes.Failed, match="rank 0, exit code -9"):
        processes.launch(1, ["-c", "import time; time.sleep(60)"], minutes=0.01)


def test_commands_come_to_the_program_as_they_were_given(monkeypatch, tmp_path):
    seen = []

    def launch(size, arguments, *, minutes):
        with open(arguments[-1]) as file:
            seen.append((size, arguments[:-1], json.load(file)))

    monkeypatch.setattr(processes, "launch", launch)
    processes.train(2, [{"model": "dalle", "out": tmp_path, "zero": 3}], program="zoo.bench.replicas")
    assert seen == [(2, ["-m", "zoo.bench.replicas"], [{"model": "dalle", "out": str(tmp_path), "zero": 3}])]


def test_one_training_leaves_its_part_and_its_digest(tmp_path):
    """In this process; the engine is the core's."""
    command = {"model": "dalle-tiny", "part": "codebook", "steps": 1, "batch": 2, "sample_every": 0}
    replicas.run({**command, "data": "shapes:8", "out": str(tmp_path / "run"), "engine": "torch"})
    assert (tmp_path / "run" / "codebook.safetensors").exists()
    assert len(json.loads(replicas.path_of(tmp_path / "run", "codebook").read_text())) == 1
    assert replicas.unequal(tmp_path / "run", "codebook", 1) == 0


def test_a_digest_is_of_every_bit_and_of_the_shard_where_there_is_one():
    one, two = nn.Linear(3, 2), nn.Linear(3, 2)
    two.load_state_dict(one.state_dict())
    assert replicas.digest(one) == replicas.digest(two)
    with torch.no_grad():
        two.bias[1] = torch.nextafter(two.bias[1], torch.tensor(9.0))
    assert replicas.digest(one) != replicas.digest(two)
    for layer in (one, two):
        layer.bias.ds_tensor = torch.zeros(1)
    assert replicas.digest(one) == replicas.digest(two)


def test_processes_are_compared_with_the_first_that_has_the_same_shard(tmp_path):
    path = replicas.path_of(tmp_path, "prior")
    for digests, expected in ((["a", "b", "a", "b"], 0), (["a", "b", "a", "a"], 1), (["a", "b", "b", "a"], 2)):
        path.write_text(json.dumps(digests))
        assert replicas.unequal(tmp_path, "prior", 2) == expected


def test_nothing_of_the_environment_is_lost():
    assert processes.environment(0, 1, 0).get("PATH") == os.environ.get("PATH")

"""What a soak would notice: torn and lost checkpoints, numbers and tensors that differ, saves that are under way."""

import json
import os

import pytest
import torch

from zoo.bench import soak
from zoo.train.checkpoint import Checkpoints
from zoo.train.world import World
from zoo.weights import save_tensors


def recorded(folder, losses, seconds=0.5):
    folder.mkdir(exist_ok=True)
    rows = [{"part": "prior", "step": i + 1, "loss": x, "seconds": seconds} for i, x in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def run(tmp_path):
    """A run with two checkpoints that the soak has seen."""
    made = soak.Run(recorded(tmp_path / "run", [3.0, 2.0]), [])
    place = Checkpoints(made.out / "checkpoints" / "prior")
    for step in (1, 2):
        place.save(step, lambda folder: (folder / "a").write_text("text"), {}, World())
    made.look()
    return made


def test_a_run_as_it_should_be_has_no_problems(run):
    assert run.problems() == []
    assert run.newest() == 2
    assert run.updates() == 2


def test_a_torn_checkpoint_is_a_problem(run):
    (run.out / "checkpoints" / "prior" / "step-00000001" / "a").write_text("test")
    assert [line.rpartition("/")[2] for line in run.problems()] == ["step-00000001: a is damaged"]


def test_a_lost_checkpoint_is_a_problem(run):
    place = run.out / "checkpoints" / "prior"
    (place / "step-00000002").rename(place / ".gone-step-00000002")
    assert run.problems() == ["prior: step 2 was there, now 1 is the newest"]
    (place / "step-00000001").rename(place / ".gone-step-00000001")
    assert run.problems() == ["prior: step 2 was there, now None is the newest"]


def test_what_a_kill_left_is_not_taken_for_a_save_under_way(run, monkeypatch):
    place = run.out / "checkpoints" / "prior"
    (place / ".writing-step-00000003").mkdir()
    assert run.saving()
    monkeypatch.setattr(soak, "ROOT", run.out)  # where there is no training command
    run.start(1)
    assert not run.saving()
    (place / ".writing-step-00000003" / "state").write_text("more")
    assert run.saving()
    assert run.finish() != [0]
    assert "train.py" in run.said()


def test_processes_have_met_when_one_has_written_what_the_run_is(run, monkeypatch):
    (run.out / "run.toml").write_text("before")
    os.utime(run.out / "run.toml", (1, 1))
    monkeypatch.setattr(soak, "ROOT", run.out)
    run.start(1)
    run.finish()
    assert not run.met()
    (run.out / "run.toml").write_text("now")
    assert run.met()


def test_numbers_are_compared_bit_for_bit_without_durations(tmp_path):
    one, two = recorded(tmp_path / "one", [3.0, 2.0], 0.1), recorded(tmp_path / "two", [3.0, 2.0], 0.2)
    assert soak.same_numbers(one, two)
    assert soak.largest_difference(one, two)[0] == 0
    recorded(two, [3.0, 2.0 + 2**-51])
    assert not soak.same_numbers(one, two)
    assert soak.largest_difference(one, two) == (pytest.approx(2**-52), 2)
    recorded(two, [3.0])
    assert not soak.same_numbers(one, two)
    assert soak.largest_difference(one, two) == (float("inf"), 2)


def test_tensors_are_compared_with_their_names_and_types(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    same = {"a": torch.ones(2), "b": torch.zeros(1)}
    assert soak.differences(one, two) == ["no finished part"]
    save_tensors(one / "prior.safetensors", same)
    assert soak.differences(one, two) == ["prior.safetensors: in one of the runs alone"]
    save_tensors(two / "prior.safetensors", same)
    assert soak.differences(one, two) == []
    save_tensors(two / "prior.safetensors", {"a": torch.ones(2).double(), "c": torch.zeros(1)})
    assert soak.differences(one, two) == [f"prior.safetensors: {name}" for name in "abc"]


def test_a_start_that_fails_says_what_was_said(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").write_text("raise SystemExit('no such model')")
    with pytest.raises(RuntimeError, match=r"exit codes \[1\]\nno such model"):
        soak.undisturbed(soak.Run(tmp_path / "run", []), 1)


def test_processes_that_hang_after_a_kill_are_told_of(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "ROOT", tmp_path)
    monkeypatch.setattr(soak, "PATIENCE", 0.2)
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "train.py").write_text("import time\ntime.sleep(600)")
    run = soak.Run(tmp_path / "run", [])
    run.start(2)
    with pytest.raises(RuntimeError, match=r"ranks \[1\] were killed, the others hung"):
        soak.stop(run, [1])
    assert all(process.poll() is not None for process in run.processes)

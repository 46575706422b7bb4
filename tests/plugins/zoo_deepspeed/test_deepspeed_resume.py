"""Killed at any moment and resumed, two processes write the run that was never killed."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from launch import ROOT, finish, go, start
from runs_fakes import copied, numbers, weights

from zoo.cli import cli
from zoo.train.checkpoint import torn
from zoo.train.metrics import read_rows
from zoo.weights import load_tensors

STEPS = 40
COMMON = ["--model", "dvae-tiny", "--data", "shapes:n=48", "--steps", str(STEPS), "--batch", "8", "--sample-every", "0",
          "--set", "train.ema=0.9", "--save-every", "3", "--resume"]  # fmt: skip


def begin(out: Path, zero: int = 2) -> list[subprocess.Popen]:
    return start(2, [str(ROOT / "scripts" / "train.py"), *COMMON, "--zero", str(zero), "--out", str(out)])


def complete(out: Path) -> None:
    codes, said = finish(begin(out))
    assert codes == [0, 0], "\n".join(said)


def wait_for(ready, processes) -> None:
    while not ready():
        assert all(process.poll() is None for process in processes), "ended too early"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run killed twice at stage 2: one process in an update, then both inside a save; and one never killed."""
    top = tmp_path_factory.mktemp("killed")
    complete(top / "whole")
    out = top / "run"

    processes = begin(out)
    wait_for(lambda: len(read_rows(out / "metrics.jsonl")) >= 7, processes)
    processes[1].kill()
    codes, said = finish(processes, 60)
    assert codes[1] == -signal.SIGKILL
    assert codes[0] == 1

    processes = begin(out)
    place, before = out / "checkpoints" / "codebook", len(read_rows(out / "metrics.jsonl"))
    wait_for(lambda: len(read_rows(out / "metrics.jsonl")) > before and any(place.glob(".writing-*")), processes)
    for process in processes:
        process.kill()
    finish(processes)
    copied(out, top / "alone")
    complete(out)
    return top, said


def test_the_losses_are_those_of_the_run_never_killed_to_the_bit(killed):
    top, _ = killed
    assert numbers(top / "run", "codebook") == numbers(top / "whole", "codebook")
    one, two = weights(top / "run", "codebook"), weights(top / "whole", "codebook")
    assert all(torch.equal(x, two[name]) for name, x in one.items())


def test_the_process_that_is_left_says_who_is_missing(killed):
    _, (said, _) = killed
    lines = [line for line in said.splitlines() if line.startswith("train.py:")]
    assert len(lines) == 1
    assert "missing rank 1, last seen in update" in lines[0]


def test_one_process_goes_on_where_two_were_killed(killed):
    top, _ = killed
    alone = top / "alone"
    newest = max(path for path in (alone / "checkpoints" / "codebook").glob("step-*") if not torn(path))
    assert len(list(newest.glob("state-*-of-00002.safetensors"))) == 2
    assert json.loads((newest / "engine.json").read_text())["processes"] == 2
    go({"model": "dvae-tiny", "data": "shapes:n=48", "steps": STEPS, "batch": 8, "sample_every": 0, "resume": True,
        "set": ["train.ema=0.9"], "out": str(alone)})  # fmt: skip
    assert numbers(alone, "codebook") == pytest.approx(numbers(top / "whole", "codebook"), rel=1e-5)


def test_a_checkpoint_of_two_processes_is_exported_as_one_plain_file(killed, tmp_path):
    top, _ = killed
    folder = max((top / "whole" / "checkpoints" / "codebook").glob("step-*"))
    for run, out in ((folder, "checkpoint"), (top / "whole", "run")):
        done = CliRunner().invoke(cli, ["export", str(run), "--out", str(tmp_path / out)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
    expected = weights(top / "whole", "codebook")
    for out in ("checkpoint", "run"):
        found, said = load_tensors(tmp_path / out)
        assert said == {"exported": ["codebook"]}
        assert found.keys() == expected.keys()
        assert all(torch.equal(x, found[name]) for name, x in expected.items())
    raw = CliRunner().invoke(cli, ["export", str(folder), "--raw", "--out", str(tmp_path / "raw")])
    assert raw.exit_code == 0
    assert any(not torch.equal(x, expected[name]) for name, x in load_tensors(tmp_path / "raw")[0].items())


def test_nothing_is_left_behind(killed):
    top, _ = killed
    names = sorted(path.name for path in (top / "run" / "checkpoints" / "codebook").iterdir())
    assert names == ["step-00000039", "step-00000040"]
    assert os.listdir(top / "run" / "checkpoints") == ["codebook"]

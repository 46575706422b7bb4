"""16-bit moments: `checks_moments.py` in a process of its own, and two processes whose checkpoint one goes on from."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launch import environment, free_port, go, run_all
from runs_fakes import numbers

from zoo.train.shards import MOMENTS, Shards

HERE = Path(__file__).parent
STEPS = 8


def test_one_process_alone():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "checks_moments.py")]
    env = {name: x for name, x in environment(0, 1, free_port()).items() if not name.startswith("PYTEST")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=HERE.parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def command(out, **more):
    return {
        "model": "dvae-tiny", "data": "shapes:n=48", "steps": STEPS, "batch": 8, "sample_every": 0, "save_every": 4,
        "set": ["train.moments=16-bit"], "out": str(out), **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The codebook trained by one process, and by two at stages 0 to 3."""
    top = tmp_path_factory.mktemp("moments")
    go(command(top / "one"))
    run_all(
        top,
        2,
        [command(top / f"zero{zero}", zero=zero) for zero in range(4)] + [command(top / "torch", engine="torch")],
    )
    return top


@pytest.mark.parametrize("how", ["zero0", "zero1", "zero2", "zero3", "torch"])
def test_two_processes_train_as_one_does(place, how):
    assert numbers(place / how, "codebook") == pytest.approx(numbers(place / "one", "codebook"), rel=2e-3)


@pytest.mark.parametrize("zero", [2, 3])
def test_one_process_goes_on_from_the_checkpoint_of_two(place, zero):
    out = place / f"again{zero}"
    shutil.copytree(place / f"zero{zero}", out)
    (out / "codebook.safetensors").unlink()
    shutil.rmtree(out / "checkpoints" / "codebook" / f"step-{STEPS:08}")
    with Shards(out / "checkpoints" / "codebook" / "step-00000004") as found:
        types = {found.tensor(name, kind).dtype for kind in MOMENTS for name in found.names(kind)}
    assert types == {torch.int16, torch.float32}
    go(command(out, resume=True))
    losses = numbers(out, "codebook")
    assert len(losses) == STEPS
    assert losses == pytest.approx(numbers(place / "one", "codebook"), rel=2e-3)

"""Two processes of which one fails, hangs, is killed or is told otherwise: what the user sees, and what is left."""

import json
import signal
import socket
import time
from pathlib import Path

import pytest
from launch import ROOT, finish, run_all, start
from runs_fakes import copied, numbers

from zoo.train.checkpoint import torn
from zoo.train.metrics import read_rows

HERE = Path(__file__).parent
TRAIN, FAULTY, REFUSED = ROOT / "scripts" / "train.py", HERE / "faulty.py", HERE / "refused.py"
COMMON = ["--model", "dvae-tiny", "--data", "shapes:n=48", "--batch", "8", "--sample-every", "0"]


def begin(out, fault, *more):
    command = [str(FAULTY), *COMMON, "--steps", "60", "--out", str(out), *more]
    return start(2, command, FAULT=fault)


def told(said):
    """Return the lines that processes said, without those of the first one's log and progress."""
    lines = [line for text in said for line in text.splitlines() if line.strip()]
    return [line for line in lines if not line.startswith(("codebook: ", "codebook, step"))]


def test_a_process_that_hangs_is_named_with_the_update(tmp_path):
    codes, said = finish(begin(tmp_path, "hang 1 3", "--timeout", "0.05"))
    lines = told(said)
    assert len(lines) == 1, said
    assert lines[0].startswith("train.py: in update 3 rank 0 waited for others: missing rank 1, last seen in update 3")
    assert codes == [1, 1]  # the one that hangs ends too


@pytest.mark.parametrize("rank", [0, 1])  # the first keeps the store in which the others look for what has happened
def test_what_a_process_raises_is_told_once_and_whole(tmp_path, rank):
    codes, said = finish(begin(tmp_path, f"raise {rank} 3"))
    assert codes == [1, 1]
    assert told([said[1 - rank]]) == []
    lines = told([said[rank]])
    assert lines[:2] == [f"train.py: rank {rank} failed in update 3:", "Traceback (most recent call last):"]
    assert lines[-2:] == ["Mistake: these shapes do not fit", "(3, 4) and (5, 6)"]
    assert len([line for line in lines if line.rstrip().endswith("in deep")]) == 4
    assert said[rank].count("Traceback") == 1


def test_the_first_process_killed_is_missed_in_one_line(tmp_path):
    codes, said = finish(begin(tmp_path, "kill 0 3"))
    assert codes == [-signal.SIGKILL, 1]
    lines = told(said)
    assert len(lines) == 1, said
    assert lines[0].startswith("train.py: in update 3 rank 1 lost rank 0, which ended without a word")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two processes that SIGTERM has stopped: folder, exit codes, what was said."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    processes = begin(out, "none 0 0", "--set", "train.ema=0.9")
    while not (out / "metrics.jsonl").exists() or len(read_rows(out / "metrics.jsonl")) < 3:
        assert all(process.poll() is None for process in processes), finish(processes)[1]
        time.sleep(0.01)
    for process in processes:
        process.terminate()
    return out, *finish(processes)


def test_sigterm_saves_the_last_update_and_ends_with_its_own_code(stopped):
    out, codes, said = stopped
    assert codes == [143, 143]
    newest = max((out / "checkpoints" / "codebook").glob("step-*"))
    assert not torn(newest)
    assert int(newest.name[5:]) == len(numbers(out, "codebook")) < 60
    lines = told(said)
    assert len([line for line in lines if line == "train.py: stopped by SIGTERM, and saved; go on with --resume"]) == 1
    assert "Traceback" not in "".join(said)


def test_a_stopped_run_goes_on_and_a_step_that_is_not_finite_says_which_block(stopped, tmp_path):
    out = copied(stopped[0], tmp_path / "run")
    at = len(numbers(out, "codebook")) + 2
    codes, said = finish(
        start(2, [str(FAULTY), *COMMON, "--steps", "60", "--out", str(out), "--set", "train.ema=0.9", "--resume"],
              FAULT=f"nan 1 {at}")  # one process has it, all skip
    )  # fmt: skip
    assert codes == [0, 0], said
    rows = read_rows(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert [row["step"] for row in rows if row["skipped"]] == [at]
    assert f"going on from step {at - 2}" in said[0]
    blamed = [line for line in said[0].splitlines() if line.startswith("gradient is not finite in ")]
    assert blamed == ["gradient is not finite in codebook.encoder.groups.0.0"]
    assert f"codebook: step {at} skipped: a gradient is not finite" in said[0]


@pytest.fixture(scope="module")
def refusals(stopped, tmp_path_factory):
    """What each of two processes made of commands that cannot be, run one after the other in one launch."""
    top, run = tmp_path_factory.mktemp("refusals"), stopped[0]
    said = json.loads((max((run / "checkpoints" / "codebook").glob("step-*")) / "manifest.json").read_text())
    assert said["format"] == 1
    newer = copied(run, top / "newer")
    manifest = max((newer / "checkpoints" / "codebook").glob("step-*")) / "manifest.json"
    manifest.write_text(json.dumps({**said, "format": 2}))
    files = {
        "micro": {"train_micro_batch_size_per_gpu": 1}, "bf16": {"bf16": {"enabled": True}},
        "scaler": {"fp16": {"loss_scale_windw": 5}},
    }  # fmt: skip
    for name, data in files.items():
        (top / f"{name}.json").write_text(json.dumps(data))
    same = {"model": "dvae-tiny", "data": "shapes:n=48", "steps": 60, "batch": 8, "sample_every": 0, "timeout": 1.0}
    fresh, again = {**same, "out": str(top / "fresh")}, {**same, "out": str(run), "resume": True}
    commands = {
        "indivisible": {**fresh, "batch": 7},
        "unknown": {**fresh, "set": ["n_hidd=8"]},
        "contradiction": {**fresh, "engine_config": str(top / "bf16.json")},
        "micro": {**fresh, "engine_config": str(top / "micro.json")},
        "scaler": {**fresh, "precision": "fp16", "engine_config": str(top / "scaler.json")},
        "recipe": {**again, "set": ["train.ema=0.5"]},
        "config": {**again, "set": ["train.ema=0.9", "n_hid=16"]},
        "model": {**again, "model": "vqvae-tiny"},
        "newer": {**again, "out": str(newer), "set": ["train.ema=0.9"]},
        "steps": {**fresh, "each": [{}, {"steps": 61}]},
        "set": {**fresh, "each": [{}, {"set": ["train.lr=0.5"]}]},
    }
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    run_all(top, 2, list(commands.values()), program=REFUSED)
    found = [json.loads((top / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    after = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    return top, dict(zip(commands, zip(*found, strict=True), strict=True)), (before, after)


SAID = {
    "indivisible": "ConfigError: a batch of 7 does not divide into 2 processes x 1 micro-batches; try --batch 8",
    "unknown": "n_hidd: no such field; did you mean 'n_hid'?",
    "contradiction": "bf16.json enables bf16: add --precision bf16, or take it out",
    "micro": "micro.json says train_micro_batch_size_per_gpu=1 and the run has 4 (--batch and --accumulate)",
    "scaler": "scaler.json: fp16.loss_scale_windw: no such field; did you mean 'loss_scale_window'",
    "recipe": "the checkpoint of 'codebook' was made with recipe.ema=0.9, not 0.5",
    "config": "the checkpoint of 'codebook' was made with config.codebook.n_hid=8, not 16",
    "model": "was begun with model 'dvae-tiny', not 'vqvae-tiny'; choose another --out",
    "newer": "has format 2; this zoo reads 1: go on with the version that wrote it, or choose another --out",
    "steps": "the processes were started differently: options.steps is 60 on rank 0 and 61 on rank 1",
    "set": "the processes were started differently: options.set",
}


@pytest.mark.parametrize("name", SAID)
def test_what_cannot_be_is_refused_on_every_process(refusals, name):
    _, found, _ = refusals
    one, two = found[name]
    assert SAID[name] in one
    assert two == one or two.startswith(("Elsewhere: ", one.partition(":")[0]))


def test_nothing_is_written_by_what_is_refused(refusals):
    top, _, (before, after) = refusals
    assert not (top / "fresh").exists()
    assert after == before


def test_processes_that_are_told_different_seeds_say_so_in_one_line(tmp_path):
    out = tmp_path / "run"
    command = [str(TRAIN), *COMMON, "--steps", "60", "--out", str(out)]
    codes, said = finish(start(2, command, each=(["--seed", "1"], ["--seed", "2"])))
    assert codes == [2, 2]
    lines = [line for text in said for line in text.splitlines()]
    assert lines == [
        "train.py: the processes were started differently: options.seed is 1 on rank 0 and 2 on rank 1; "
        "start all with the same command, files and versions"
    ]
    assert not out.exists()


def test_a_port_that_is_in_use_is_named_in_one_line(tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        command = [str(TRAIN), *COMMON, "--steps", "60", "--out", str(tmp_path / "run"), "--timeout", "0.5"]
        processes = start(2, command, MASTER_PORT=str(port))
        assert processes[0].wait(timeout=60) == 2
        processes[1].kill()  # as a launcher does when one has failed
    _, said = finish(processes)
    lines = [line for text in said for line in text.splitlines()]
    assert len(lines) == 1, said
    assert lines[0].startswith(f"train.py: port {port} is in use by another program: choose one for the launcher")
    assert f"--master_port {port + 1}" in lines[0]
    assert not (tmp_path / "run").exists()

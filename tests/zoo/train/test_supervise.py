"""`scripts/supervise` around a command that fails as it is told to, and saves folders that look like checkpoints."""

import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SUPERVISE = Path(__file__).parents[3] / "scripts" / "supervise"

FAKE = """
import os, signal, subprocess, sys, time
from pathlib import Path

out = Path(sys.argv[sys.argv.index("--out") + 1])
starts = out / "starts"
began = len(starts.read_text().splitlines()) if starts.exists() else 0
with starts.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + "\\n")

def save(step):
    (out / "checkpoints" / "prior" / f"step-{step:08d}").mkdir(parents=True)

def wait(number, code, seconds=0):
    def stop(*_):
        time.sleep(seconds)
        save(began + 1)
        sys.exit(code)
    signal.signal(number, stop)
    (out / "ready").touch()
    time.sleep(30)

plan = Path(sys.argv[sys.argv.index("--out") - 1]).read_text().splitlines()
what, *rest = plan[min(began, len(plan) - 1)].split()
if what == "save":
    save(began + 1)
if what == "mistake":
    Path(os.environ["ZOO_MISTAKE"]).touch()
if what == "wait":
    wait(getattr(signal, rest[1]), int(rest[0]))
if what == "launcher":  # ends at once when it is told to, before what it has started
    if os.fork() == 0:
        wait(signal.SIGTERM, 143, seconds=0.5)
    signal.pause()
sys.exit(int(rest[0]))
"""


@pytest.fixture
def begin(tmp_path):
    """Return a function that starts the supervised command; a line of the plan says how one start goes."""
    fake, plan = tmp_path / "fake.py", tmp_path / "plan"
    fake.write_text(FAKE)

    def start(*lines, name=None, options=()):
        plan.write_text("\n".join(lines))
        command = [sys.executable, str(fake)]
        if name is not None:
            path = tmp_path / name
            path.write_text(f"#!{sys.executable}\n{FAKE}")
            path.chmod(0o755)
            command = [str(path)]
        return subprocess.Popen(
            [sys.executable, str(SUPERVISE), "--backoff", "0.05", *options, "--", *command, str(plan), "--out",
             str(tmp_path)], stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    return start


def ended(process):
    """Return the exit code and what was said on stderr."""
    try:
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    return process.returncode, said


def waits(said):
    return [float(x) for x in re.findall(r"starting again in ([\d.]+) s", said)]


def starts(folder):
    return (folder / "starts").read_text().splitlines()


def test_a_failed_command_is_started_again_from_the_newest_checkpoint(begin, tmp_path):
    code, said = ended(begin("save 1", "save 247", "done 0"))
    assert code == 0
    assert len(starts(tmp_path)) == 3
    assert all(line.split().count("--resume") == 1 for line in starts(tmp_path))
    lines = said.splitlines()
    assert len(lines) == 2
    assert lines[0] == "supervise: exit code 1; starting again in 0.05 s from prior step-00000001 (restart 1 of 10)"
    assert "exit code 247; starting again in 0.05 s from prior step-00000002" in lines[1]


def test_the_wait_doubles_without_progress_and_begins_again_with_it(begin):
    code, said = ended(begin("fail 1", "fail 1", "fail 1", "save 1", "fail 1", "done 0"))
    assert code == 0
    assert waits(said) == [0.05, 0.1, 0.2, 0.05, 0.1]
    assert "from the beginning" in said


def test_it_gives_up_with_the_commands_exit_code(begin, tmp_path):
    code, said = ended(begin("fail 9", options=["--restarts", "2"]))
    assert code == 9
    assert len(starts(tmp_path)) == 3
    assert said.splitlines()[-1] == "supervise: exit code 9; 2 restarts brought no newer checkpoint, giving up"


@pytest.mark.parametrize("final", [0, 2, 130, 143])
def test_nothing_is_started_again_after_a_final_exit_code(begin, tmp_path, final):
    assert ended(begin(f"end {final}")) == (final, "")
    assert len(starts(tmp_path)) == 1


def test_a_mistake_under_a_launcher_that_hides_exit_codes_is_final(begin, tmp_path):
    assert ended(begin("mistake 1")) == (2, "")
    assert len(starts(tmp_path)) == 1


def told(process, folder, number):
    while not (folder / "ready").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    return ended(process)


@pytest.mark.parametrize(
    ("name", "own", "code"), [("SIGTERM", 143, 143), ("SIGINT", 130, 130), ("SIGTERM", 1, 143), ("SIGTERM", 0, 0)]
)
def test_a_signal_is_passed_on_and_nothing_is_started_again(begin, tmp_path, name, own, code):
    assert told(begin(f"wait {own} {name}"), tmp_path, getattr(signal, name)) == (code, "")
    assert len(starts(tmp_path)) == 1
    assert (tmp_path / "checkpoints" / "prior" / "step-00000001").is_dir()


def test_processes_that_outlive_their_launcher_may_save(begin, tmp_path):
    code, _ = told(begin("launcher 1"), tmp_path, signal.SIGTERM)
    assert code == 143
    assert (tmp_path / "checkpoints" / "prior" / "step-00000001").is_dir()


def test_told_to_stop_while_it_rests_it_stops(begin, tmp_path):
    process = begin("fail 1", options=["--backoff", "60"])
    assert "starting again in 60 s" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 143
    assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize("name", ["deepspeed", "torchrun"])
def test_a_launcher_gets_a_port_of_its_own_each_time(begin, tmp_path, name):
    assert ended(begin("fail 1", "done 0", name=name))[0] == 0
    ports = [line.split()[1] for line in starts(tmp_path) if line.startswith("--master_port ")]
    assert len(ports) == 2
    assert all(0 < int(port) < 65536 for port in ports)


@pytest.mark.parametrize(
    "told",
    [
        ("--nnodes", "2"),
        ("--node-rank=1",),
        ("--rdzv-endpoint=head:29400",),
        ("--rdzv_backend", "c10d"),
        ("--master_addr", "head"),
        ("--master-port", "29501"),
        ("--standalone",),
    ],
)
def test_a_launcher_that_is_told_where_to_meet_keeps_its_port(told):
    prepared = runpy.run_path(str(SUPERVISE))["prepared"]
    command = ["torchrun", *told, "scripts/train.py", "--model", "dalle"]
    assert prepared(command) == [*command, "--resume"]

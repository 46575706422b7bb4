"""Runs `checks_alone.py` in a process of its own."""

import subprocess
import sys
from pathlib import Path

from launch import environment, free_port

HERE = Path(__file__).parent


def test_one_process_alone():
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(HERE / "checks_alone.py")]
    without = {name for name in environment(0, 1, 0) if name.startswith("PYTEST")}
    env = {name: x for name, x in environment(0, 1, free_port()).items() if name not in without}
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=HERE.parents[2])
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout

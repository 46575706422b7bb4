"""A run that was killed or stopped, and went on, is the run that never was."""

import os
import random
import signal
import threading
import time

import attrs
import pytest
import torch
from train_fakes import FakeData, job

from zoo.errors import ConfigError
from zoo.parts import Recipe
from zoo.train.engine import World
from zoo.train.feed import Feed, check_shares
from zoo.train.interrupt import Interrupted
from zoo.train.loop import train
from zoo.train.metrics import read_rows

RECIPE = Recipe(lr=1e-2, warmup=5, batch=8, accumulate=2, steps=60, ema=0.95)


def go(folder, **changes):
    """Train from the newest checkpoint to the end; return the job."""
    running = job(folder, RECIPE, **changes)
    found = running.checkpoints.newest()
    if found is not None:
        running.engine.load(found.folder)
    train(running, found.step if found else 0)
    return running


def state(running):
    ema = {f"ema:{name}": x for name, x in running.engine._ema.average.items()}
    return {**running.stage.state_dict(), **ema}


def numbers(folder):
    """The rows without the time they took."""
    return [{k: x for k, x in row.items() if k != "seconds"} for row in read_rows(folder / "metrics.jsonl")]


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_ten_times_and_resumed_equals_never_killed_bit_for_bit(tmp_path):
    whole = go(tmp_path / "whole")
    rest, kills = random.Random(5), 0
    folder = tmp_path / "killed"
    while kills < 10:
        begun = lines(folder / "metrics.jsonl")
        child = os.fork()
        if child == 0:
            go(folder)
            os._exit(0)
        target = min(begun + rest.randint(1, 8), RECIPE.steps - 1)
        while lines(folder / "metrics.jsonl") < target:
            time.sleep(0.001)
        time.sleep(rest.random() * 0.01)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
    resumed = go(folder)
    one, two = state(whole), state(resumed)
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    assert numbers(tmp_path / "whole") == numbers(folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_stops_and_the_run_goes_on(tmp_path, number, code):
    whole = go(tmp_path / "whole", save_every=1000)

    def told(step, row):
        if step == 17:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        go(tmp_path / "stopped", save_every=1000, told=told)
    assert stopped.value.exit_code == code
    assert signal.getsignal(number) is before
    assert [row["step"] for row in numbers(tmp_path / "stopped")] == list(range(1, 18))
    resumed = go(tmp_path / "stopped", save_every=1000)
    assert all(torch.equal(x, state(resumed)[name]) for name, x in state(whole).items())


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def told(step, row):
        handler = signal.getsignal(signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        while signal.getsignal(signal.SIGINT) is handler:  # two signals that wait to be delivered are one
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)  # the second ends this

    # A shell starts background commands with SIGINT ignored; "as it would have outside" would then be: not at all.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path, told=told)
    finally:
        signal.signal(signal.SIGINT, outside)


def test_training_works_outside_the_main_thread(tmp_path):
    done = []
    thread = threading.Thread(target=lambda: done.append(go(tmp_path)))
    thread.start()
    thread.join()
    assert lines(tmp_path / "metrics.jsonl") == RECIPE.steps
    assert done


def test_no_reader_is_left_behind(tmp_path):
    def told(step, row):
        if step == 3:
            raise RuntimeError("told")

    with pytest.raises(RuntimeError, match="told"):
        go(tmp_path, told=told)
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]


class Broken(FakeData):
    def read(self, rows, rng=None):
        raise OSError("the disk is gone")


def test_an_error_of_the_reader_reaches_the_loop(tmp_path):
    with pytest.raises(OSError, match="the disk is gone"):
        go(tmp_path, data=Broken())


def feed(rank=0, size=1, batch=8):
    data = FakeData()
    return Feed(read=data.read, length=50, batch=batch, seed=3, world=World(rank, size))


def test_every_row_is_read_once_an_epoch_and_the_order_is_that_of_seed_and_step():
    texts = [text for step in range(25) for text in feed().at(step).texts]
    assert len(texts) == 200
    for epoch in range(4):
        assert len(set(texts[epoch * 50 : epoch * 50 + 50])) == 50
    assert feed().at(9).texts == feed().at(9).texts != attrs.evolve(feed(), seed=4).at(9).texts


def test_reading_ahead_gives_the_same_batches_and_ends_with_its_use():
    plain = [(step, batch.texts) for step, batch in feed().batches(3, 9)]
    ahead = attrs.evolve(feed(), ahead=2)
    assert [(step, batch.texts) for step, batch in ahead.batches(3, 9)] == plain
    left_early = ahead.batches(0, 100)
    next(left_early)
    left_early.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "feed"]
    with pytest.raises(OSError, match="the disk is gone"):
        next(attrs.evolve(ahead, read=Broken().read).batches(0, 2))


def test_processes_share_the_global_batch_and_its_random_numbers():
    whole = feed().at(5)
    shares = [feed(rank, 4).at(5) for rank in range(4)]
    assert sum((share.texts for share in shares), ()) == whole.texts
    drawn = torch.cat([feed(rank, 4).rng(5).normal(3) for rank in range(4)])
    assert torch.equal(drawn, feed().rng(5).normal(3))


def test_a_batch_that_does_not_divide_is_refused_with_one_that_does():
    check_shares(32, 2, 4)
    with pytest.raises(ConfigError, match=r"30 does not divide into 4 micro-batches; try --batch 32"):
        check_shares(30, 1, 4)
    with pytest.raises(ConfigError, match="2 processes x 4 micro-batches"):
        check_shares(30, 2, 4)


def test_only_the_last_checkpoints_are_kept(tmp_path):
    go(tmp_path, keep=3)
    names = sorted(path.name for path in (tmp_path / "checkpoints" / "prior").iterdir())
    assert names == ["step-00000050", "step-00000055", "step-00000060"]

"""Checkpoints are whole or absent: torn ones are passed over, a kill inside a save leaves the one before."""

import json
import os
import signal
import time

import pytest

from zoo.train import checkpoint
from zoo.train.checkpoint import Checkpoints, lacking, torn
from zoo.train.engine import World

WORLD = World()


def writer(text, extra=()):
    def write(folder):
        (folder / "a.bin").write_bytes(text.encode() * 1000)
        (folder / "b.json").write_text(json.dumps(text))
        for name in extra:
            (folder / name).write_text(name)

    return write


@pytest.fixture
def place(tmp_path):
    made = Checkpoints(tmp_path / "checkpoints", keep=3)
    for step in (10, 20, 30):
        made.save(step, writer(f"step {step}"), {"seed": 1}, WORLD)
    return made


def test_the_newest_is_found_with_what_it_was_made_with(place):
    found = place.newest()
    assert (found.step, found.facts, found.folder.name) == (30, {"seed": 1}, "step-00000030")
    assert (found.folder / "b.json").read_text() == '"step 30"'


def test_nothing_saved_is_none(tmp_path):
    assert Checkpoints(tmp_path / "no").newest() is None


def truncate(folder):
    with (folder / "a.bin").open("r+b") as file:
        file.truncate(100)


def flip(folder):
    with (folder / "a.bin").open("r+b") as file:
        file.seek(500)
        file.write(b"\xff")


@pytest.mark.parametrize(
    ("tear", "said"),
    [
        (truncate, "a.bin has 100 bytes, not 7000"),
        (flip, "a.bin is damaged"),
        (lambda folder: (folder / "b.json").unlink(), "b.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "no readable manifest"),
        (lambda folder: (folder / "manifest.json").write_text('{"fil'), "no readable manifest"),
        (
            lambda folder: (folder / "manifest.json").write_text('{"step": 1, "facts": {}, "files": ["a.bin"]}'),
            "no read",
        ),
        (lambda folder: (folder / "manifest.json").write_text('{"step": 1, "files": {}}'), "no readable manifest"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "no readable manifest"),
    ],
)
def test_a_torn_one_is_passed_over_with_a_line(place, caplog, tear, said):
    tear(place.place(30))
    assert place.newest().step == 20
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert said in lines[0]
    assert "step-00000030" in lines[0]


def test_a_torn_one_is_written_again_and_a_whole_one_is_left(place):
    truncate(place.place(30))
    place.save(30, writer("again"), {}, WORLD)
    assert not torn(place.place(30))
    assert (place.place(30) / "b.json").read_text() == '"again"'
    place.save(30, writer("never"), {}, WORLD)
    assert (place.place(30) / "b.json").read_text() == '"again"'


def test_the_last_few_are_kept(tmp_path):
    place = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3, 4):
        place.save(step, writer("x"), {}, WORLD)
        assert place.newest().step == step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000003", "step-00000004"]


def test_a_torn_one_does_not_count_among_those_kept(tmp_path):
    place = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        place.save(step, writer("x"), {}, WORLD)
    (place.place(2) / "a.bin").unlink()
    place.save(3, writer("x"), {}, WORLD)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def test_old_ones_stay_until_a_newer_one_is_whole(place):
    def fails(folder):
        writer("half")(folder)
        raise OSError("disk full")

    before = sorted(path.name for path in place.folder.iterdir())
    with pytest.raises(OSError, match="disk full"):
        place.save(40, fails, {}, WORLD)
    assert place.newest().step == 30
    place.save(50, writer("x"), {}, WORLD)
    after = sorted(path.name for path in place.folder.iterdir())
    assert before == ["step-00000010", "step-00000020", "step-00000030"]
    assert after == ["step-00000020", "step-00000030", "step-00000050"]  # and what was half written is gone


def test_an_old_one_goes_when_the_newer_one_is_whole_and_in_its_place(place, monkeypatch):
    removed, remove = [], checkpoint._remove

    def watched(path):
        assert not torn(place.place(40))
        removed.append(path.name)
        remove(path)

    monkeypatch.setattr(checkpoint, "_remove", watched)
    place.save(40, writer("x"), {}, WORLD)
    assert removed == ["step-00000010"]


def killed(act):
    """Run `act` in a process of its own, which it must not survive."""
    child = os.fork()
    if child == 0:
        act()
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def die(*args):
    os.kill(os.getpid(), signal.SIGKILL)


def names(place):
    return sorted(path.name for path in place.folder.iterdir())


def test_killed_between_the_rename_and_the_removal_of_old_ones(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "_prune", die)
        killed(lambda: place.save(40, writer("x"), {}, WORLD))
    assert names(place) == ["step-00000010", "step-00000020", "step-00000030", "step-00000040"]
    assert place.newest().step == 40
    place.save(50, writer("x"), {}, WORLD)
    assert names(place) == ["step-00000030", "step-00000040", "step-00000050"]


def test_killed_before_the_rename_nothing_is_lost(place, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", die)
        killed(lambda: place.save(40, writer("x"), {}, WORLD))
    assert names(place) == [".writing-step-00000040", "step-00000010", "step-00000020", "step-00000030"]
    assert place.newest().step == 30
    place.save(40, writer("again"), {}, WORLD)
    assert names(place) == ["step-00000020", "step-00000030", "step-00000040"]


def test_killed_while_an_old_one_is_removed_again_and_again(place, monkeypatch):
    """What is left of removed ones is never seen, and goes in the end."""

    def dies(path):
        if path.exists() and path.name.startswith(".gone-"):
            die()

    for step in (40, 50, 60):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint, "_delete", dies)
            killed(lambda step=step: place.save(step, writer("x"), {}, WORLD))
        assert place.newest().step == step
        assert not any(torn(path) for path in place.folder.glob("step-*"))
    place.save(70, writer("x"), {}, WORLD)
    assert names(place) == ["step-00000050", "step-00000060", "step-00000070"]


def test_leftovers_of_one_checkpoint_may_be_many(place):
    for name in (".gone-step-00000010", ".gone-gone-step-00000010", ".writing-step-00000010", ".writing-step-00000040"):
        (place.folder / name).mkdir()
        (place.folder / name / "a.bin").write_text("half")
    place.save(40, writer("x"), {}, WORLD)
    assert names(place) == ["step-00000020", "step-00000030", "step-00000040"]


STATE = ["state-00000-of-00002.safetensors", "state-00001-of-00002.safetensors"]


@pytest.mark.parametrize(
    ("names", "lost"),
    [
        (["engine.json", *STATE], []),
        (STATE, ["engine.json"]),
        (["engine.json", STATE[1]], [STATE[0]]),
        (["engine.json"], ["state-00000-of-00001.safetensors"]),
        (["a.bin"], []),
    ],
)
def test_the_files_of_an_engine_belong_together(names, lost):
    assert lacking(names) == lost


def test_what_lacks_a_file_is_not_published(place):
    with pytest.raises(OSError, match="lacks state-00001-of-00002"):
        place.save(40, writer("x", extra=["engine.json", STATE[0]]), {}, WORLD)
    assert place.newest().step == 30


def test_what_is_not_ours_stays(place):
    (place.folder / "step-00000010").rename(place.folder / "best")
    (place.folder / "notes.txt").write_text("good at 10")
    for step in (40, 50, 60):
        place.save(step, writer("x"), {}, WORLD)
    assert names(place) == ["best", "notes.txt", "step-00000040", "step-00000050", "step-00000060"]


def test_a_file_that_cannot_be_read_is_passed_over(place, monkeypatch, caplog):
    digest = checkpoint._digest

    def broken(path):
        if path.parent.name == "step-00000030":
            raise OSError(5, "Input/output error")
        return digest(path)

    monkeypatch.setattr(checkpoint, "_digest", broken)
    assert place.newest().step == 20
    assert "a.bin cannot be read (Input/output error)" in caplog.text


def test_killed_inside_a_save_at_any_moment(tmp_path):
    """A child saves without end and is killed; what is newest is always whole, and never older than it was."""
    place, last = Checkpoints(tmp_path / "c", keep=2), 0
    for attempt in range(12):
        child = os.fork()
        if child == 0:
            for step in range(last + 1, last + 10_000):
                place.save(step, writer("x", extra=[f"{i}" for i in range(20)]), {}, WORLD)
            os._exit(0)
        while not place.place(last + 2).exists():
            time.sleep(0.002)
        time.sleep(0.003 * attempt)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        newest = place.newest()
        assert newest is not None
        assert newest.step >= last + 2
        assert not torn(newest.folder)
        last = newest.step

"""What processes must agree about, without starting any: a world is whatever shares and gathers."""

import json
import threading

import attrs
import pytest

from zoo.errors import BadRun, ConfigError
from zoo.train import shards, world
from zoo.train.checkpoint import Checkpoints
from zoo.train.feed import Feed
from zoo.train.world import Elsewhere, World, agree, first, seen


class Threads:
    """A world of threads in place of processes."""

    def __init__(self, size):
        self.size, self.meeting, self.board = size, threading.Barrier(size, timeout=20), [None] * size

    def run(self, act):
        """Return what `act(world)` returned or raised on every rank."""
        found = [None] * self.size

        def one(rank):
            try:
                found[rank] = act(Member(rank, self.size, self))
            except Exception as error:
                found[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found


@attrs.frozen
class Member:
    rank: int
    size: int
    all: Threads

    def barrier(self):
        self.all.meeting.wait()

    def gather(self, value):
        self.all.board[self.rank] = value
        self.barrier()
        found = list(self.all.board)
        self.barrier()
        return found

    def share(self, value):
        return self.gather(value)[0]


def test_one_process_acts_and_all_know():
    ran = []

    def act(world):
        return first(world, lambda: ran.append(world.rank) or "made")

    assert Threads(3).run(act) == ["made"] * 3
    assert ran == [0]
    assert first(World(), lambda: 7) == 7


@pytest.mark.parametrize(("error", "code"), [(BadRun("no such run"), 2), (OSError("the disk is full"), 1)])
def test_a_failure_reaches_all_with_its_exit_code(error, code):
    def fails():
        raise error

    zero, *others = Threads(3).run(lambda world: first(world, fails))
    assert zero is error
    assert all(isinstance(other, Elsewhere) and other.code == code for other in others)
    assert str(error) in str(others[0])


def test_processes_that_were_told_different_things_are_named():
    def told(**changes):
        return lambda world: agree(world, {"seed": 1, "recipe": {"batch": 8, **(changes if world.rank == 2 else {})}})

    assert Threads(4).run(told()) == [None] * 4
    found = Threads(4).run(told(batch=16))
    assert {str(error) for error in found} == {
        "the processes were started differently: recipe.batch is 8 on rank 0 and 16 on rank 2; "
        "start all with the same command, files and versions"
    }
    assert all(isinstance(error, ConfigError) for error in found)
    agree(World(), {"anything": object()})


def test_a_checkpoint_of_several_processes_is_whole_or_absent(tmp_path):
    place = Checkpoints(tmp_path / "c", keep=2)

    def save(step, broken=()):
        def act(world):
            def write(folder):
                if world.rank in broken:
                    world.all.meeting.abort()  # as a launcher ends the others
                    raise OSError("the disk is full")
                (folder / f"part-{world.rank}").write_text(f"{step} {world.rank}")

            place.save(step, write, {"seed": 1}, world)
            assert place.place(step).is_dir()  # whoever returns finds it there

        return act

    assert Threads(3).run(save(1)) == [None] * 3
    assert sorted(path.name for path in place.newest().folder.iterdir()) == [
        "manifest.json",
        "part-0",
        "part-1",
        "part-2",
    ]
    assert any(isinstance(error, OSError) for error in Threads(3).run(save(2, broken=(1,))))
    assert place.newest().step == 1
    assert Threads(3).run(save(2)) == [None] * 3
    assert (place.newest().folder / "part-2").read_text() == "2 2"
    assert Threads(2).run(save(3)) == [None] * 2
    assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["step-00000002", "step-00000003"]


def test_files_that_rank_0_does_not_see_yet_belong_to_a_checkpoint(tmp_path, monkeypatch):
    place, stale = Checkpoints(tmp_path / "c"), threading.local()
    listing = type(tmp_path).iterdir

    def iterdir(folder):
        hidden = getattr(stale, "hidden", ())
        return (path for path in listing(folder) if path.name not in hidden)

    monkeypatch.setattr(type(tmp_path), "iterdir", iterdir)

    def save(step, hide):
        def act(world):
            stale.hidden = hide(world.rank)

            def write(folder):
                shards.write(folder, world.rank, world.size, {})
                if world.rank == 0:
                    (folder / "engine.json").write_text("{}")

            place.save(step, write, {}, world)

        return act

    names = [f"state-0000{rank}-of-00003.safetensors" for rank in range(3)]
    others = Threads(3).run(save(1, lambda rank: [name for name in names if name != names[rank]]))
    assert others == [None] * 3
    assert sorted(json.loads((place.place(1) / "manifest.json").read_text())["files"]) == ["engine.json", *names]
    found = Threads(3).run(save(2, lambda rank: names[1]))  # nobody sees it: lost
    assert all(isinstance(error, OSError) for error in found)
    assert "lacks state-00001-of-00003.safetensors: all machines must see one disk" in str(found[0])
    assert place.newest().step == 1


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_micro_batch_is_made_of_the_same_samples_whatever_the_number_of_processes(size):
    feeds = [Feed(read=None, length=100, batch=24, seed=0, world=World(rank, size), pieces=3) for rank in range(size)]
    share = 24 // 3 // size
    for piece in range(3):
        places = [place for feed in feeds for place in feed.positions[piece * share : (piece + 1) * share]]
        assert places == list(range(piece * 8, piece * 8 + 8))


def test_a_file_of_rank_0_that_appears_late_is_waited_for(tmp_path, monkeypatch):
    path = tmp_path / "run.toml"
    threading.Timer(0.3, path.touch).start()
    assert seen(path) == path
    monkeypatch.setattr(world, "_SEEN_SECONDS", 0.1)
    with pytest.raises(ConfigError, match=r"does not appear here: all machines must see one disk; choose an --out"):
        seen(tmp_path / "no" / "run.toml")

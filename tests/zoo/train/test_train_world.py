"""What processes must agree about, without starting any: a world is whatever shares and gathers."""

import threading

import attrs
import pytest

from zoo.errors import BadRun, ConfigError
from zoo.train.checkpoint import Checkpoints
from zoo.train.feed import Feed
from zoo.train.world import Elsewhere, World, agree, first


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


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_micro_batch_is_made_of_the_same_samples_whatever_the_number_of_processes(size):
    feeds = [Feed(read=None, length=100, batch=24, seed=0, world=World(rank, size), pieces=3) for rank in range(size)]
    share = 24 // 3 // size
    for piece in range(3):
        places = [place for feed in feeds for place in feed.positions[piece * share : (piece + 1) * share]]
        assert places == list(range(piece * 8, piece * 8 + 8))

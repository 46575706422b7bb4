"""`zoo export`: from a checkpoint or a run, whatever is whole, one tensor at a time, and a file that appears whole."""

import json
import math
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from zoo import weights
from zoo.cli import main
from zoo.resolution import resolve_tree
from zoo.runs import RunFolder
from zoo.train import shards
from zoo.train.checkpoint import Checkpoints
from zoo.train.shards import Piece, Shards, whole
from zoo.train.world import World
from zoo.weights import Lazy, load_tensors, save_tensors, stream_tensors

WORLD = World()
SHAPES = {"codebook.weight": (6, 5), "codebook.bias": (5,), "codebook.count": (), "codebook.empty": (0, 2)}


def tensors(seed=1, shapes=SHAPES):
    draw = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return {name: x if x.ndim else torch.tensor(7) for name, x in made.items()}


def pieces(rank, size, **kinds):
    """Return what process `rank` of `size` holds of the tensors of each kind."""
    found = {}
    for kind, values in kinds.items():
        for name, x in values.items():
            part = -(-x.numel() // size)
            start = min(rank * part, x.numel())
            run = x.flatten()[start : start + part]
            if len(run) or (rank == 0 and not x.numel()):
                found[f"{kind}:{name}"] = Piece(run, start, tuple(x.shape))
    return found


def checkpoint(run, part, step=4, size=3, **kinds):
    """Write a checkpoint as `size` processes would; return its folder."""
    place = Checkpoints(run / "checkpoints" / part)

    def write(folder):
        for rank in range(size):
            shards.write(folder, rank, size, pieces(rank, size, **kinds))
        (folder / "engine.json").write_text("{}")

    place.save(step, write, {}, WORLD)
    return place.place(step)


@pytest.fixture
def run(tmp_path):
    """A run whose codebook is done, without a checkpoint of its own, and whose prior is being trained."""
    node, config = resolve_tree("dalle-tiny")
    folder = RunFolder.create(tmp_path / "run", node, config, seed=0, data="shapes").path
    save_tensors(folder / "codebook.safetensors", {"weight": torch.ones(3), "steps": torch.tensor(9)}, {"step": 9})
    shapes = {"prior.a": (4, 3), "prior.b": (3,)}
    checkpoint(folder, "prior", 2, weights=tensors(5, shapes))
    checkpoint(folder, "prior", 4, weights=tensors(6, shapes), average=tensors(7, {"prior.a": (4, 3)}))
    return folder


def done(*arguments):
    assert main(["export", *map(str, arguments)]) == 0
    return load_tensors(arguments[arguments.index("--out") + 1])[0]


def fails(capsys, *arguments):
    """Run an export that must end with code 2 and one line; return the line."""
    assert main(["export", *map(str, arguments)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def equal(found, expected):
    return found.keys() == expected.keys() and all(
        torch.equal(x, expected[name]) and x.dtype == expected[name].dtype for name, x in found.items()
    )


def bare(named):
    return {name.partition(".")[2]: x for name, x in named.items()}


@pytest.mark.parametrize("size", [1, 3])
def test_a_checkpoint_is_written_as_save_tensors_would(tmp_path, size):
    folder = checkpoint(tmp_path, "codebook", size=size, weights=tensors(), exp_avg=tensors(2))
    out = tmp_path / "new" / "out.safetensors"
    done(folder, "--out", out)
    save_tensors(tmp_path / "expected", bare(tensors()), {"exported": ["codebook"]})
    assert out.read_bytes() == (tmp_path / "expected").read_bytes()


def test_of_a_checkpoint_the_average_is_kept_unless_raw(tmp_path):
    average = {"codebook.weight": torch.full((6, 5), 3.0)}
    folder = checkpoint(tmp_path, "codebook", weights=tensors(), average=average)
    assert equal(done(folder, "--out", tmp_path / "kept"), bare({**tensors(), **average}))
    assert equal(done(folder, "--raw", "--out", tmp_path / "raw"), bare(tensors()))


def test_a_run_gives_parts_that_are_done_and_the_newest_checkpoint_of_others(run, tmp_path, capsys):
    found = done(run, "--out", tmp_path / "out")
    prior = {**tensors(6, {"prior.a": (4, 3), "prior.b": (3,)}), **tensors(7, {"prior.a": (4, 3)})}
    assert equal(found, {"codebook.weight": torch.ones(3), "codebook.steps": torch.tensor(9), **prior})
    assert load_tensors(tmp_path / "out")[1] == {"exported": ["codebook", "prior"]}
    assert capsys.readouterr().out == f"{tmp_path / 'out'}: codebook, prior; 4 tensors, 80 bytes\n"


def test_one_part_has_its_own_names(run, tmp_path):
    assert done(run, "--part", "codebook", "--out", tmp_path / "a").keys() == {"weight", "steps"}
    assert done(run, "--part", "prior", "--out", tmp_path / "b").keys() == {"a", "b"}


def test_a_done_part_is_taken_as_it_was_saved_and_raw_from_its_checkpoint(run, tmp_path):
    raw = {"codebook.weight": torch.zeros(3), "codebook.steps": torch.tensor(9)}
    checkpoint(run, "codebook", weights=raw, average={"codebook.weight": torch.ones(3)})
    command = [run, "--part", "codebook", "--out", tmp_path / "out"]
    assert torch.equal(done(*command)["weight"], torch.ones(3))
    assert torch.equal(done(*command, "--raw")["weight"], torch.zeros(3))


def test_raw_parts_without_a_checkpoint_are_taken_as_they_were_saved(run, tmp_path):
    found = done(run, "--raw", "--out", tmp_path / "out")
    assert torch.equal(found["codebook.weight"], torch.ones(3))
    assert torch.equal(found["prior.a"], tensors(6, {"prior.a": (4, 3)})["prior.a"])


def test_in_a_run_a_torn_checkpoint_is_passed_over(run, tmp_path):
    next((run / "checkpoints" / "prior" / "step-00000004").glob("state-00001*")).unlink()
    found = done(run, "--part", "prior", "--out", tmp_path / "out")
    assert equal(found, bare(tensors(5, {"prior.a": (4, 3), "prior.b": (3,)})))


def test_a_torn_checkpoint_is_refused(run, tmp_path, capsys):
    folder = run / "checkpoints" / "prior" / "step-00000004"
    file = folder / "state-00001-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    line = fails(capsys, folder, "--out", tmp_path / "out")
    assert "is not a whole checkpoint: state-00001-of-00003.safetensors has" in line
    (folder / "manifest.json").unlink()
    assert "no readable manifest" in fails(capsys, folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_part_is_named_with_those_there_are(run, tmp_path, capsys):
    line = fails(capsys, run, "--part", "pryor", "--out", tmp_path / "out")
    assert "pryor" in line
    assert "codebook" in line
    assert "prior" in line


def test_what_is_no_run_is_refused(tmp_path, capsys):
    for path in (tmp_path, tmp_path / "no"):
        assert "is neither a run folder" in fails(capsys, path, "--out", tmp_path / "out")


def test_a_run_without_weights_says_so(tmp_path, capsys):
    node, config = resolve_tree("dalle-tiny")
    run = RunFolder.create(tmp_path / "run", node, config, seed=0, data="shapes").path
    for more in ([], ["--part", "prior"]):
        assert "has no weights yet" in fails(capsys, run, *more, "--out", tmp_path / "out")


def test_a_run_folder_named_like_a_card_is_one(run, tmp_path, monkeypatch):
    run.rename(tmp_path / "dalle-tiny")
    monkeypatch.chdir(tmp_path)
    assert done("dalle-tiny", "--part", "codebook", "--out", "out").keys() == {"weight", "steps"}


def test_nothing_is_written_where_it_would_be_taken_for_a_part_that_is_done(run, capsys):
    before = (run / "codebook.safetensors").read_bytes()
    for name in ("codebook.safetensors", "prior.safetensors"):
        assert "choose another --out" in fails(capsys, run, "--part", "codebook", "--out", run / name)
    assert (run / "codebook.safetensors").read_bytes() == before
    assert not (run / "prior.safetensors").exists()


def test_an_error_midway_leaves_no_file_and_an_older_one_as_it_was(run, tmp_path, monkeypatch):
    out = tmp_path / "here" / "out"
    done(run, "--part", "codebook", "--out", out)
    before, read = out.read_bytes(), Shards.read

    def fails_midway(self, key, *args, **more):
        if key == "weights:prior.b":
            raise OSError(28, "No space left on device")
        return read(self, key, *args, **more)

    monkeypatch.setattr(Shards, "read", fails_midway)
    assert main(["export", str(run), "--part", "prior", "--out", str(out)]) != 0
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_full_disk_is_not_taken_for_a_damaged_part(run, tmp_path, monkeypatch, capsys):
    def full(*args, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "stream_tensors", full)
    main(["export", str(run), "--part", "codebook", "--out", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert "No space left" in said
    assert "truncated" not in said


class Held:
    """Makes tensors, and notes how many of those it made earlier are in memory when it is asked for another."""

    def __init__(self):
        self.alive = []
        self._memory = []

    def tensor(self, shape, dtype=torch.float32):
        self.alive.append(sum(memory() is not None for memory in self._memory))
        memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)  # lives as long as any view of the tensor
        self._memory.append(weakref.ref(memory))
        return torch.from_numpy(memory).view(dtype).view(shape)


def test_one_tensor_is_held_at_a_time(tmp_path):
    held = Held()
    give = partial(held.tensor, (4, 5))
    stream_tensors(tmp_path / "x", {f"{i}": Lazy((4, 5), torch.float32, give) for i in range(6)})
    assert held.alive == [0] * 6


def test_of_a_tensor_in_many_pieces_no_second_copy_is_made(run, tmp_path, monkeypatch):
    """All that an export allocates is one whole tensor, when the one before is gone."""
    held = Held()

    def empty(shape, dtype):
        return held.tensor(shape if isinstance(shape, tuple) else (shape,), dtype)

    def copies(*args):
        pytest.fail("a second copy")

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(torch, "cat", copies)
    for folder in (run, run / "checkpoints" / "prior" / "step-00000004"):
        done(folder, "--out", tmp_path / "out")
    assert held.alive == [0] * (4 + 2)


def test_files_are_not_mapped(run, tmp_path, monkeypatch):
    """What was read of a mapped file counts as memory of the process, up to the whole checkpoint."""
    import safetensors

    opened = []

    class Watched:
        def __init__(self, *args, **more):
            self.file = safetensors_open(*args, **more)

        def __enter__(self):
            self.file.__enter__()
            return self

        def __exit__(self, *error):
            return self.file.__exit__(*error)

        def metadata(self):
            opened.append("metadata")
            return self.file.metadata()

    safetensors_open = safetensors.safe_open
    monkeypatch.setattr(safetensors, "safe_open", Watched)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    assert set(opened) == {"metadata"}


def test_a_foreign_file_among_the_pieces_is_named(run, tmp_path, capsys):
    folder = run / "checkpoints" / "prior" / "step-00000004"
    file = folder / "state-00000-of-00003.safetensors"
    save_tensors(file, {"a": torch.ones(1)}, {"from": "elsewhere"})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert "no piece of a checkpoint of this zoo" in fails(capsys, folder, "--out", tmp_path / "out")


def test_pieces_of_other_types_keep_every_bit(tmp_path):
    given = {
        "half": torch.randn(5).bfloat16(), "count": torch.arange(3), "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5, dtype=torch.float64), "none": torch.zeros(0, 3),
    }  # fmt: skip
    named = {f"codebook.{name}": x for name, x in given.items()}
    folder = checkpoint(tmp_path, "codebook", size=2, weights=named)
    assert equal(done(folder, "--out", tmp_path / "out"), given)
    with Shards(folder) as found:
        assert found.read("weights:codebook.count", 1, 3).tolist() == [1, 2]
    assert whole(given["half"]).shape == (5,)

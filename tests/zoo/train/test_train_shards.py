"""Tensors in pieces: whoever wrote them, any run of values is read back, and nothing that is missing is."""

import os
import resource

import pytest
import torch

from zoo.errors import BadRun
from zoo.train.shards import Piece, Shards, whole, write

SHAPES = {"a.weight": (5, 7), "a.bias": (7,), "scale": (), "none": (0, 4)}


def tensors():
    return {name: torch.randn(shape, generator=torch.Generator().manual_seed(3)) for name, shape in SHAPES.items()}


def cut(folder, size, kinds=("weights",)):
    """Write everything as `size` processes would: even parts, the last ones short or empty."""
    for rank in range(size):
        pieces = {}
        for name, x in tensors().items():
            part = -(-x.numel() // size)
            start = min(rank * part, x.numel())
            values = x.flatten()[start : start + part]
            if len(values) or (rank == 0 and not x.numel()):
                pieces |= {f"{kind}:{name}": Piece(values, start, tuple(x.shape)) for kind in kinds}
        write(folder, rank, size, pieces)
    return folder


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_whatever_the_number_of_writers_every_run_is_read(tmp_path, size):
    with Shards(cut(tmp_path, size)) as found:
        assert sorted(found.names("weights")) == sorted(SHAPES)
        for name, x in tensors().items():
            assert torch.equal(found.tensor(name), x)
            flat = x.flatten()
            for start in range(len(flat) + 1):
                for stop in range(start, len(flat) + 1):
                    assert torch.equal(found.read(f"weights:{name}", start, stop), flat[start:stop])


def test_more_writers_than_a_process_may_have_files_open(tmp_path):
    folder = cut(tmp_path, 30)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 20, hard))
    try:
        with Shards(folder) as found:
            for name, x in tensors().items():
                assert torch.equal(found.tensor(name), x)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_values_that_no_file_holds_may_be_zero(tmp_path):
    write(tmp_path, 0, 2, {"error:a": Piece(torch.tensor([1.0, 2.0]), 1, (6,))})
    write(tmp_path, 1, 2, {"error:a": Piece(torch.tensor([3.0]), 4, (6,))})
    with Shards(tmp_path) as found:
        assert found.read("error:a", gaps=True).tolist() == [0, 1, 2, 0, 3, 0]
        assert found.read("error:a", 2, 5, gaps=True).tolist() == [2, 0, 3]


def test_what_is_kept_is_the_average_where_there_is_one(tmp_path):
    x = torch.arange(6.0)
    pieces = {"weights:p": whole(x), "average:p": whole(x + 1), "weights:buffer": whole(torch.tensor([3]))}
    write(tmp_path, 0, 1, pieces)
    with Shards(tmp_path) as found:
        assert torch.equal(found.lazy("p").fetch(), x + 1)
        assert torch.equal(found.lazy("p", raw=True).fetch(), x)
        assert found.lazy("buffer").dtype == torch.int64
        assert torch.equal(found.lazy("buffer").fetch(), torch.tensor([3]))


def test_views_of_one_storage_are_written_apart(tmp_path):
    flat = torch.arange(10.0)
    write(tmp_path, 0, 1, {"weights:a": Piece(flat[:4], 0, (4,)), "weights:b": Piece(flat[4:], 0, (6,))})
    with Shards(tmp_path) as found:
        assert torch.equal(found.tensor("b"), flat[4:])
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1000


def test_a_missing_writer_s_values_are_missed(tmp_path):
    cut(tmp_path, 3)
    (tmp_path / "state-00001-of-00003.safetensors").unlink()
    with Shards(tmp_path) as found:
        assert torch.equal(found.read("weights:a.weight", 0, 12), tensors()["a.weight"].flatten()[:12])
        with pytest.raises(BadRun, match=r"'weights:a.weight' lacks some of its values 0 to 35"):
            found.tensor("a.weight")


def test_another_model_s_tensor_is_named(tmp_path):
    with Shards(cut(tmp_path, 2)) as found, pytest.raises(BadRun, match=r"has no 'exp_avg:a\.bias'"):
        found.read("exp_avg:a.bias")


def test_a_folder_without_state_says_so(tmp_path):
    with pytest.raises(BadRun, match="holds no checkpoint of this zoo"):
        Shards(tmp_path)

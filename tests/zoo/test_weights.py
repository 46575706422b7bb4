"""Weight files: written whole, verified, fetched, and read from public layouts without running their code."""

import errno
import os
import pickle
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from zoo import weights
from zoo.errors import BadWeights


def one_line(info):
    assert "\n" not in str(info.value)
    return str(info.value)


# -- safetensors ------------------------------------------------------------------------------------------------------


def test_round_trip_of_tied_strided_empty_and_odd_types(tmp_path):
    whole = torch.randn(4, 6)
    tensors = {
        "whole": whole,
        "tied": whole,
        "view": whole[1:3],
        "transposed": whole.t(),
        "strided": whole[:, ::2],
        "channels_last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(3).bfloat16(),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "bool": torch.tensor([True, False]),
        "parameter": nn.Parameter(torch.randn(2)),
    }
    path = tmp_path / "x.safetensors"
    weights.save_tensors(path, tensors, {"versions": {"zoo": "1"}, "list": [1, 2]})
    loaded, metadata = weights.load_tensors(path)
    assert metadata == {"versions": {"zoo": "1"}, "list": [1, 2]} == weights.read_metadata(path)
    assert loaded.keys() == tensors.keys()
    for name, x in tensors.items():
        assert loaded[name].dtype == x.dtype
        assert torch.equal(loaded[name], x), name


def test_equal_input_gives_equal_bytes(tmp_path):
    digests = set()
    for i in range(8):
        path = tmp_path / f"{i}"
        weights.save_tensors(path, {"b": torch.ones(3), "a": torch.zeros(2)}, {"x": 1, "y": 2, "z": 3})
        digests.add(weights.sha256(path))
    assert len(digests) == 1


def test_foreign_metadata_is_kept_as_it_is(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "x", metadata={"format": "pt"})
    assert weights.load_tensors(tmp_path / "x")[1] == {"format": "pt"}
    save_file({"a": torch.ones(1)}, tmp_path / "y", metadata={"zoo": "3"})
    with pytest.raises(BadWeights, match="metadata"):
        weights.load_tensors(tmp_path / "y")


def test_every_truncation_is_bad_weights(saved):
    data = saved.read_bytes()
    for length in (0, 4, 8, 20, len(data) - 1):
        saved.write_bytes(data[:length])
        with pytest.raises(BadWeights) as info:
            weights.load_tensors(saved)
        assert str(saved) in one_line(info)


@pytest.mark.parametrize("content", [b"hello, this is no weight file", b"\xff" * 64, pickle.dumps({"a": 1})])
def test_foreign_files_are_bad_weights(saved, content):
    saved.write_bytes(content)
    with pytest.raises(BadWeights) as info:
        weights.load_tensors(saved)
    assert str(saved) in one_line(info)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(BadWeights, match="no such"):
        weights.load_tensors(tmp_path / "none")
    with pytest.raises(BadWeights):
        weights.load_tensors(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    # In a process of its own, whose files may not grow past 4 kB: the nearest thing to a full disk.
    code = """
import resource, sys, torch
from zoo.weights import save_tensors
path = sys.argv[1]
save_tensors(path, {"a": torch.ones(3)})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save_tensors(path, {"a": torch.ones(100_000)})
except OSError as error:
    print(error.errno)
"""
    path = tmp_path / "x.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert int(done.stdout) == errno.EFBIG
    assert os.listdir(tmp_path) == ["x.safetensors"]
    assert torch.equal(weights.load_tensors(path)[0]["a"], torch.ones(3))


def test_importing_needs_no_torch():
    code = "import sys, zoo.weights, zoo.fetching, zoo.files; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- loading into a module --------------------------------------------------------------------------------------------


def test_load_into_is_strict_and_names_the_nearest_key():
    module = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), last=nn.Linear(3, 2)))
    before = {k: x.clone() for k, x in module.state_dict().items()}
    good = {k: torch.randn_like(x) for k, x in before.items()}

    renamed = {("frist.weight" if k == "first.weight" else k): x for k, x in good.items()}
    with pytest.raises(BadWeights, match=r"x\.st: lacks 'first.weight' .*did you mean 'frist.weight'"):
        weights.load_into(module, renamed, "x.st")
    with pytest.raises(BadWeights, match=r"unexpected 'last\.bais' .*did you mean 'last.bias'"):
        weights.load_into(module, {**good, "last.bais": torch.ones(1)}, "x.st")
    with pytest.raises(BadWeights, match=r"'last.weight' has shape \[5, 3\], the model's is \[2, 3\]"):
        weights.load_into(module, {**good, "last.weight": torch.ones(5, 3)}, "x.st")
    assert all(torch.equal(x, before[k]) for k, x in module.state_dict().items())

    weights.load_into(module, good, "x.st")
    assert all(torch.equal(x, good[k]) for k, x in module.state_dict().items())


def test_load_into_lets_a_fitted_module_answer_for_its_own_shape():
    class Fitted(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("model", torch.empty(0, dtype=torch.uint8))

        def _load_from_state_dict(self, state, prefix, *args):
            self.model = state[prefix + "model"].clone()

    module = nn.ModuleDict({"tokenizer": Fitted(), "linear": nn.Linear(1, 1)})
    state = {**module.state_dict(), "tokenizer.model": torch.arange(9, dtype=torch.uint8)}
    weights.load_into(module, state, "x")
    assert module["tokenizer"].model.tolist() == list(range(9))

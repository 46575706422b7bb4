"""Public layouts and pickles are read without running their code."""

import json
import os
import pickle
import subprocess
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from zoo import weights
from zoo.errors import BadWeights


def one_line(info):
    assert "\n" not in str(info.value)
    return str(info.value)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.up = nn.Upsample(scale_factor=2)
        self.register_buffer("kept", torch.arange(3))
        self.register_buffer("dropped", torch.ones(2), persistent=False)
        self.note = {"device": torch.device("cpu"), "dtype": torch.float16, "shape": torch.Size([1, 2])}

    def forward(self, x):
        return self.up(self.conv(x))


def trees(tmp_path):
    module = nn.Sequential(OrderedDict(a=Block(), b=nn.Sequential(nn.Linear(2, 2).half(), nn.Identity()), c=nn.ReLU()))
    module.b[0].bias = module.b[0].weight  # tied
    return module


def equal(got, expected):
    assert got.keys() == expected.keys()
    for key, x in expected.items():
        assert got[key].dtype == x.dtype
        assert torch.equal(got[key], x)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrap", ["bare", "state_dict", "module", "module in a dict"])
def test_pickles_of_state_dicts_and_modules(tmp_path, zipped, wrap):
    module = trees(tmp_path)
    content = {
        "bare": module.state_dict(),
        "state_dict": {"epoch": 3, "state_dict": module.state_dict(), "optimizer": {"state": {0: torch.ones(2)}}},
        "module": module,
        "module in a dict": {"model": module, "args": [1, "x", None]},
    }[wrap]
    path = tmp_path / "x.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    equal(weights.read_public(path), module.state_dict())


def test_views_keep_their_offset_and_stride(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    module = nn.Module()
    module.register_buffer("part", base[1:3, ::2].t())
    module.register_buffer("odd", torch.arange(4, dtype=torch.int16).view(torch.uint16))
    torch.save(module, tmp_path / "x.pt")
    equal(weights.read_public(tmp_path / "x.pt"), module.state_dict())


def test_safetensors_and_unknown_suffix(saved, tmp_path):
    equal(weights.read_public(saved), {"a": torch.arange(6.0)})
    other = tmp_path / "x.h5"
    other.write_bytes(b"x")
    with pytest.raises(BadWeights, match="not a weight file"):
        weights.read_public(other)
    with pytest.raises(BadWeights, match="no such"):
        weights.read_public(tmp_path / "none.pt")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    with pytest.raises(BadWeights, match="holds no tensors"):
        weights.read_public(tmp_path / "empty.pt")


class Evil:
    """Unpickles by calling a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def hostile(tmp_path):
    """Return objects whose unpickling would make the file `mark`, or worse."""
    mark = tmp_path / "mark"
    return mark, {
        "system": Evil(os.system, f"touch {mark}"),
        "exec": Evil(exec, f"open({str(mark)!r}, 'w')"),
        "getattr": Evil(getattr, torch.ones(1), "tofile"),
        "popen": Evil(subprocess.Popen, ["touch", str(mark)]),
        "module call": Evil(nn.Linear, 2, 3),
    }


@pytest.mark.parametrize("kind", ["system", "exec", "getattr", "popen", "module call"])
@pytest.mark.parametrize("layout", ["zip", "stream", "raw"])
def test_hostile_pickles_are_refused_and_not_run(tmp_path, kind, layout):
    mark, objects = hostile(tmp_path)
    path = tmp_path / "x.pt"
    content = {"weight": torch.ones(2), "x": objects[kind], "module": nn.ReLU()}
    if layout == "raw":
        path.write_bytes(pickle.dumps(content["x"], protocol=2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(BadWeights) as info:
        weights.read_public(path)
    assert str(path) in one_line(info)
    assert not mark.exists()


@pytest.mark.parametrize(
    "opcode",
    [b"cposix\nsystem\n(S'touch %s'\ntR.", b"(S'touch %s'\niposix\nsystem\n.", b"(cposix\nsystem\nS'touch %s'\no."],
)
def test_every_way_to_call_is_refused(tmp_path, opcode):
    mark = tmp_path / "mark"
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", opcode % str(mark).encode())
    with pytest.raises(BadWeights, match=r"posix.system"):
        weights.read_public(path)
    assert not mark.exists()


def test_inert_classes_do_not_reach_the_real_ones(tmp_path):
    # NEWOBJ and BUILD on a class that exists: only a holder is made, the class itself is neither imported nor changed.
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02csubprocess\nPopen\n)\x81}X\x04\x00\x00\x00argsK\x01sb.")
    with pytest.raises(BadWeights, match="holds no tensors"):
        weights.read_public(path)
    assert not hasattr(subprocess.Popen, "args")


class Settings(dict):
    """As training frameworks keep them: a dict with a class of its own."""


@pytest.mark.parametrize("zipped", [True, False])
def test_what_a_training_framework_adds_is_passed_over(tmp_path, zipped):
    module = trees(tmp_path)
    content = {
        "epoch": 3,
        "callbacks": {Block: {"best_model_score": torch.ones(1), "dirpath": "x"}},
        "hyper_parameters": Settings(lr=1e-4, sizes=[1, 2]),
        "state_dict": module.state_dict(),
    }
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    equal(weights.read_public(tmp_path / "last.ckpt"), module.state_dict())


def archive_of(path, pickled, storage=b"\0" * 16, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", storage)


def tensor_pickle(count, offset, size, stride):
    """Return a pickle of {"a": tensor} with these claims about a float32 storage, by hand."""
    number = lambda n: b"J" + n.to_bytes(4, "little", signed=True)  # noqa: E731
    numbers = lambda ns: b"(" + b"".join(map(number, ns)) + b"t"  # noqa: E731
    pid = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(count) + b"tQ"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(offset) + numbers(size) + numbers(stride)
    # The holder beside it makes torch's own reader decline, so that ours is the one tested.
    return b"\x80\x02}(X\x01\x00\x00\x00a" + tensor + b"\x89}tRX\x01\x00\x00\x00bcacme\nThing\n)\x81u."


def test_tensors_by_hand(tmp_path):
    path = tmp_path / "x.pt"
    archive_of(path, tensor_pickle(4, 1, [3], [1]), torch.arange(4.0).numpy().tobytes())
    equal(weights.read_public(path), {"a": torch.tensor([1.0, 2.0, 3.0])})


@pytest.mark.parametrize(
    "claims",
    [
        (9, 0, [4], [1]),
        (4, 2, [4], [1]),
        (4, -1, [2], [1]),
        (4, 0, [2**20, 2**20], [0, 0]),
        (4, 0, [-1], [1]),
        (4, 0, [2, 2], [3, 1]),
        (-4, 0, [2], [1]),
    ],
)
def test_tensors_that_claim_too_much_are_refused(tmp_path, claims):
    path = tmp_path / "x.pt"
    archive_of(path, tensor_pickle(*claims))
    with pytest.raises(BadWeights) as info:
        weights.read_public(path)
    assert str(path) in one_line(info)


def test_compressed_archives_and_big_endian_are_refused(tmp_path):
    path = tmp_path / "x.pt"
    archive_of(path, tensor_pickle(4, 0, [4], [1]), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(BadWeights, match="compressed"):
        weights.read_public(path)
    archive_of(path, tensor_pickle(4, 0, [4], [1]))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/byteorder", b"big")
    with pytest.raises(BadWeights, match="big-endian"):
        weights.read_public(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_pickles_are_refused(tmp_path, zipped):
    path = tmp_path / "x.pkl"
    torch.save(trees(tmp_path), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for length in (0, 1, 30, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(BadWeights) as info:
            weights.read_public(path)
        assert str(path) in one_line(info)


def test_dicts_and_modules_that_hold_themselves(tmp_path):
    path = tmp_path / "x.pt"
    loop = {"epoch": 1}
    loop["model"] = loop
    torch.save(loop, path)
    with pytest.raises(BadWeights):
        weights.read_public(path)
    module = nn.Module()
    module._modules["again"] = module
    torch.save(module, path)
    with pytest.raises(BadWeights, match="nested without end"):
        weights.read_public(path)


def test_scripted_modules(tmp_path):
    torch.jit.script(scripted := nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))).save(tmp_path / "x.pt")
    equal(weights.read_public(tmp_path / "x.pt"), scripted.state_dict())


def test_folders(tmp_path):
    with pytest.raises(BadWeights, match="found none"):
        weights.read_public(tmp_path)
    a, b = {"w": torch.ones(1)}, {"w": torch.zeros(2)}
    torch.save(a, tmp_path / "pytorch_model.bin")
    equal(weights.read_public(tmp_path), a)
    weights.save_tensors(tmp_path / "model.safetensors", b)
    equal(weights.read_public(tmp_path), b)
    weights.save_tensors(tmp_path / "other.safetensors", b)
    with pytest.raises(BadWeights, match="which weight file"):
        weights.read_public(tmp_path)
    torch.save(a, tmp_path / "encoder.pkl")
    weights.save_tensors(tmp_path / "decoder.safetensors", b)
    equal(weights.read_public(tmp_path), {"encoder.w": a["w"], "decoder.w": b["w"]})


def test_sharded_folders(tmp_path):
    weights.save_tensors(tmp_path / "m-1.safetensors", {"a": torch.ones(1)})
    weights.save_tensors(tmp_path / "m-2.safetensors", {"b": torch.ones(2)})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
    equal(weights.read_public(tmp_path), {"a": torch.ones(1), "b": torch.ones(2)})
    index.write_text(json.dumps({"weight_map": {"a": "../m-1.safetensors"}}))
    with pytest.raises(BadWeights, match="outside its folder"):
        weights.read_public(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": 5}}))
    with pytest.raises(BadWeights, match="outside its folder: '5'"):
        weights.read_public(tmp_path)
    index.write_text("[]")
    with pytest.raises(BadWeights, match="not an index"):
        weights.read_public(tmp_path)


def test_a_folder_with_an_encoder_alone_is_half_a_dvae_only_as_a_pickle(tmp_path):
    weights.save_tensors(tmp_path / "encoder.safetensors", {"a": torch.ones(2)})
    assert list(weights.read_public(tmp_path)) == ["a"]
    (tmp_path / "encoder.safetensors").unlink()
    torch.save({"a": torch.ones(2)}, tmp_path / "encoder.pkl")
    with pytest.raises(BadWeights, match=r"holds encoder\.pkl and no file 'decoder'"):
        weights.read_public(tmp_path)

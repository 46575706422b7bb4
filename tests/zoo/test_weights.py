"""Weight files: written whole, verified, fetched, and read from public layouts without running their code."""

import errno
import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from zoo import weights
from zoo.errors import BadWeights, NotInstalled


def one_line(info):
    assert "\n" not in str(info.value)
    return str(info.value)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "x.safetensors"
    weights.save_tensors(path, {"a": torch.arange(6.0)}, {"part": "codebook", "step": 7})
    return path


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


# -- digests, cache ---------------------------------------------------------------------------------------------------


def test_verify(saved):
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert weights.sha256(saved) == digest
    weights.verify(saved, digest.upper(), saved.stat().st_size)
    with pytest.raises(BadWeights, match="sha256 is"):
        weights.verify(saved, "0" * 64)
    with pytest.raises(BadWeights, match="bytes"):
        weights.verify(saved, digest, 3)
    for bad in ("", "../../etc/passwd", digest + "\n", "g" * 64):
        with pytest.raises(BadWeights, match="no valid sha256"):
            weights.verify(saved, bad)
    with pytest.raises(BadWeights, match="no such"):
        weights.verify(saved.with_name("none"), digest)


def test_local_files_are_verified_where_they_lie(tmp_path, monkeypatch):
    path = tmp_path / "a file.pt"
    path.write_bytes(b"abc")
    digest = weights.sha256(path)
    monkeypatch.chdir(tmp_path)
    for uri in (str(path), "a file.pt", path.as_uri(), f"file://localhost{path.as_uri()[7:]}"):
        assert weights.fetch(uri, sha256=digest, size=3).samefile(path)
        with pytest.raises(BadWeights, match="sha256 is"):
            weights.fetch(uri, sha256="0" * 64)
    with pytest.raises(BadWeights, match="this machine"):
        weights.fetch("file://elsewhere/a.pt", sha256=digest)


def test_other_schemes_go_through_the_hook_and_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(b"abc").hexdigest()
    calls = []

    def hook(uri, dest):
        calls.append(uri)
        dest.write_bytes(b"abc")
        return dest

    got = weights.fetch("acme://host/a/b/model.pt?x=1", sha256=digest, size=3, hook=hook)
    assert got.read_bytes() == b"abc"
    assert tmp_path / "cache" in got.parents
    assert got.suffix == ".pt"
    assert weights.fetch("acme://host/a/b/model.pt", sha256=digest, hook=hook) == got
    assert len(calls) == 1
    got.write_bytes(b"abd")  # a damaged copy is brought again
    assert weights.fetch("acme://host/a/b/model.pt", sha256=digest, hook=hook).read_bytes() == b"abc"
    assert len(calls) == 2


def test_a_hook_may_name_another_file_which_stays(tmp_path):
    other = tmp_path / "elsewhere.bin"
    other.write_bytes(b"abc")
    digest = weights.sha256(other)
    got = weights.fetch("acme://x", sha256=digest, folder=tmp_path / "cache", hook=lambda uri, dest: other)
    assert got != other
    assert got.read_bytes() == other.read_bytes() == b"abc"


def test_wrong_content_never_reaches_the_cache(tmp_path):
    def hook(uri, dest):
        dest.write_bytes(b"evil")
        return dest

    with pytest.raises(BadWeights, match="acme://x: sha256 is"):
        weights.fetch("acme://x", sha256="0" * 64, folder=tmp_path, hook=hook)
    assert [x for x in tmp_path.rglob("*") if x.is_file()] == []


def test_unknown_scheme(tmp_path):
    for hook in (None, lambda uri, dest: None):
        with pytest.raises(NotInstalled, match="'acme'"):
            weights.fetch("acme://x", sha256="0" * 64, folder=tmp_path, hook=hook)


@pytest.mark.parametrize("uri", ["acme://h/../../../etc/passwd", "acme://h/..", "acme://h/.bashrc", "acme:..%2f..%2fx"])
def test_a_uri_cannot_leave_the_cache(tmp_path, uri):
    def hook(uri, dest):
        dest.write_bytes(b"abc")
        return dest

    cache = tmp_path / "cache"
    got = weights.fetch(uri, sha256=hashlib.sha256(b"abc").hexdigest(), folder=cache, hook=hook)
    assert got.resolve().parent == (cache / "weights").resolve()
    assert got.name.startswith(hashlib.sha256(b"abc").hexdigest())
    with pytest.raises(BadWeights, match="no valid sha256"):
        weights.fetch("acme://x", sha256="../" * 21 + "x", folder=cache, hook=hook)


# -- public checkpoints -----------------------------------------------------------------------------------------------


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
    index.write_text("[]")
    with pytest.raises(BadWeights, match="not an index"):
        weights.read_public(tmp_path)

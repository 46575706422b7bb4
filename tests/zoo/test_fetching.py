"""Weight files are fetched into a cache, verified, and never leave it."""

import hashlib

import pytest

from zoo import weights
from zoo.errors import BadWeights, NotInstalled


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

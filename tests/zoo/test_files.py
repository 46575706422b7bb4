"""Files appear whole or not at all."""

import errno
import os

import pytest

from zoo.files import atomic_bytes, atomic_text, atomic_write


def test_a_file_is_replaced_and_parents_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "x.txt"
    atomic_text(path, "één 🎨")
    atomic_text(path, "two 🎨")
    assert path.read_text("utf-8") == "two 🎨"
    assert os.listdir(path.parent) == ["x.txt"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "no space left"), KeyboardInterrupt(), ValueError("x")])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "x.txt"
    atomic_bytes(path, b"old")
    with pytest.raises(type(error)), atomic_write(path) as temporary:  # noqa: PT012
        temporary.write_bytes(b"half of the n")
        raise error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_a_failed_flush_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    atomic_bytes(path, b"old")

    def full(handle):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left") as info:
        atomic_bytes(path, b"new")
    assert info.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_content_is_flushed_before_the_name_and_the_folder_after(tmp_path, monkeypatch):
    events = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda h: (events.append(os.readlink(f"/proc/self/fd/{h}")), fsync(h)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), replace(a, b)))
    atomic_bytes(tmp_path / "x", b"1")
    assert len(events) == 3
    assert events[0].endswith(".tmp")
    assert events[1:] == ["rename", str(tmp_path)]


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "checkpoint"
    with pytest.raises(RuntimeError), atomic_write(path) as temporary:  # noqa: PT012
        temporary.mkdir()
        (temporary / "half").write_text("x")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with atomic_write(path) as temporary:
        (temporary / "deep").mkdir(parents=True)
        (temporary / "deep" / "whole").write_text("x")
        assert not path.exists()
    assert (path / "deep" / "whole").read_text() == "x"
    with pytest.raises(OSError, match="not empty"), atomic_write(path) as temporary:
        temporary.mkdir()
    assert (path / "deep" / "whole").read_text() == "x"


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "x"):
        pass
    assert os.listdir(tmp_path) == []


def test_new_files_have_ordinary_permissions(tmp_path):
    atomic_bytes(tmp_path / "x", b"1")
    (tmp_path / "y").write_bytes(b"1")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "y").stat().st_mode

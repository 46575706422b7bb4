"""Files and folders that appear whole or not at all. Imports no torch.

A file is written beside its final place, flushed to the disk, and renamed over it. Whoever looks sees the old file or
the new one, also after a crash, a full disk or a cut of power.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a name beside `path`; what the block wrote there, a file or a folder, becomes `path` when the block ends.

    Missing parents are made. When the block fails, in whatever way, nothing of it is left and `path` is as it was.
    A folder replaces nothing: `path` must not exist, or be an empty folder.

    Raises:
        OSError: the disk is full, `path` is a folder with something in it, ...
        FileNotFoundError: the block wrote nothing.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        _sync_one(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a write to a file that is open does not say which
            error.filename = str(path)
        raise
    finally:
        _remove(temporary)


def atomic_text(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file's content by `text` in UTF-8, whole or not at all."""
    atomic_bytes(path, text.encode())


def atomic_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file's content by `data`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


def allow_open_files(count: int) -> None:
    """Let this process have `count` more files open, as far as it may decide that itself."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = soft + count if hard == resource.RLIM_INFINITY else min(soft + count, hard)
    with contextlib.suppress(ValueError, OSError):  # then opening them says what is wrong
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def sync(path: Path) -> None:
    """Flush a file, or a folder with all that is in it, to the disk."""
    if path.is_dir():
        for inner in path.iterdir():
            sync(inner)
    _sync_one(path)


def _sync_one(path: Path) -> None:
    if path.is_dir() and os.name == "nt":
        return  # Windows cannot open a folder, and needs no flush of it
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)

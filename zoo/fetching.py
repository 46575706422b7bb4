"""Bring weight files to this machine and hold them against their sha256. Imports no torch, opens no connection.

Files of this machine are verified where they lie; for everything else the caller supplies a hook (a plugin's
`zoo_fetch`), and what it brings is kept in the cache under a name made of the digest.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from zoo.errors import BadWeights, NotInstalled
from zoo.files import atomic_write


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the file's sha256 in lower-case hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: str | os.PathLike[str], expected: str, size: int | None = None) -> None:
    """Check a file against the sha256 (and the number of bytes) it should have.

    Raises:
        BadWeights: the file is missing or another one.
    """
    if not re.fullmatch(r"[0-9a-fA-F]{64}", expected):
        raise BadWeights(f"{path}: its card gives no valid sha256: '{expected[:80]}'")
    if not Path(path).is_file():
        raise BadWeights(f"{path}: no such weight file")
    found_size = Path(path).stat().st_size
    if size is not None and found_size != size:
        raise BadWeights(f"{path}: has {found_size} bytes and should have {size}")
    found = sha256(path)
    if found != expected.lower():
        raise BadWeights(f"{path}: sha256 is {found} and should be {expected.lower()}")


def cache_folder() -> Path:
    """Return where fetched weights are kept: $ZOO_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("ZOO_CACHE"):
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("image-zoo"))


def fetch(
    uri: str,
    *,
    sha256: str,
    size: int | None = None,
    folder: Path | None = None,
    hook: Callable[[str, Path], Path | None] | None = None,
) -> Path:
    """Return a local file with the content of `uri`, its sha256 verified.

    A path or a `file://` uri is verified where it lies. Anything else is brought by `hook(uri, dest)` into the cache,
    under a name made of its sha256, and is not brought again while that copy is sound.

    Args:
        uri: a path, `file:///path`, or what a plugin's `zoo_fetch` knows.
        sha256: the file's digest; a wrong or absent one is an error.
        size: its length in bytes, when known.
        folder: the cache; None: `cache_folder()`.
        hook: writes the file to the path it is given (or elsewhere) and returns where, or None for an unknown uri.

    Raises:
        BadWeights: the file is missing or is not the one its sha256 promises.
        NotInstalled: no plugin fetches such a uri.
    """
    local = _local(uri)
    if local is not None:
        verify(local, sha256, size)
        return local
    if not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise BadWeights(f"{uri}: its card gives no valid sha256: '{sha256[:80]}'")
    # The name is made here, of safe characters only: a uri decides neither the folder nor a hidden name.
    name = re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(uri).path.rpartition("/")[2])[-80:].lstrip(".")
    target = (folder or cache_folder()) / "weights" / f"{sha256.lower()}-{name or 'weights'}"
    try:
        verify(target, sha256, size)
        return target
    except BadWeights:
        pass  # absent or damaged: bring it (again)
    with atomic_write(target) as temporary:
        brought = hook(uri, temporary) if hook else None
        if brought is None:
            raise NotInstalled(f"{uri}: no installed plugin fetches '{urlsplit(uri).scheme}' weights")
        if Path(brought) != temporary:
            shutil.copyfile(brought, temporary)
        try:
            verify(temporary, sha256, size)
        except BadWeights as error:
            raise BadWeights(str(error).replace(str(temporary), uri)) from None
    return target


def _local(uri: str) -> Path | None:
    parts = urlsplit(uri)
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise BadWeights(f"{uri}: a file uri names a file of this machine, as in file:///path")
        return Path(url2pathname(parts.path) if os.name == "nt" else unquote(parts.path))
    # One letter is a Windows drive.
    return Path(uri).expanduser() if len(parts.scheme) < 2 else None

"""Pickles of plain data: arrays of bytes or whole numbers, text, numbers, lists, dicts. Nothing they name is imported.

Unpickling runs whatever the file names. The reader here gives every name a harmless stand-in: numpy's array and type
become inert holders that are turned into an array by code of ours, and any other name is refused. numpy itself never
sees the file's state: a crafted one could crash it.
"""

from __future__ import annotations

import pickle
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from zoo.errors import BadData

_TYPES = {"u1": np.uint8, "i8": np.int64, "i4": np.int32}
"""What an array may hold: pixels, and the labels that some programs keep as an array."""
_DEEPEST = 10
_MOST = 1 << 30
"""Values of an array, at most."""


def read_plain(path: Path) -> Any:
    """Return what was pickled; text written by Python 2 comes as bytes.

    Raises:
        BadData: the file is truncated, no pickle, or names anything but plain data (the text says what).
    """
    try:
        with path.open("rb") as file:
            return _plain(_Reader(file).load(), {})
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile file may break the reader anywhere: each way is the file's fault
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadData(f"{path}: cannot be read as a pickle of plain data: {reason}; download it again") from error


class _Type:
    """numpy.dtype, by its code alone."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = code.decode("latin-1") if isinstance(code, bytes) else str(code)

    def __setstate__(self, state: Any) -> None:
        """Let go of the byte order: what is read here is little-endian or one byte."""
        if isinstance(state, tuple) and len(state) > 1 and state[1] in (">", b">"):
            raise pickle.UnpicklingError("it holds a big-endian array")


class _Array:
    """numpy.ndarray; its state is checked before it becomes one."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _version, shape, kind, fortran, raw = state
        if not isinstance(kind, _Type) or kind.code not in _TYPES:
            code = kind.code if isinstance(kind, _Type) else type(kind).__name__
            raise pickle.UnpicklingError(f"it holds an array of type {code}, which is refused")
        if not isinstance(raw, bytes) or not all(type(n) is int and n >= 0 for n in shape) or prod(shape) > _MOST:
            raise pickle.UnpicklingError("it holds an array of an odd form")
        values = np.frombuffer(raw, np.dtype(_TYPES[kind.code]).newbyteorder("<"))
        self.value = values.reshape(shape, order="F" if fortran else "C")


class _Reader(pickle.Unpickler):
    """Unpickles what `_known` lists and plain containers, and nothing else."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file, encoding="bytes")
        self._known = _known()

    def find_class(self, module: str, name: str) -> Any:
        if (known := self._known.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is refused")
        return known


def _known() -> dict[str, Any]:
    """Return what a pickle may name. Made anew for every file, so that no file can alter it for the next."""

    def reconstruct(*_: Any) -> _Array:
        return _Array()

    def encode(text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1", b"latin1"):
            raise pickle.UnpicklingError("it encodes text in an odd way")
        return text.encode("latin-1")

    return {
        "numpy.core.multiarray._reconstruct": reconstruct,
        "numpy._core.multiarray._reconstruct": reconstruct,
        "numpy.ndarray": type(None),  # named to be reconstructed, and never called
        "numpy.dtype": lambda code, *_: _Type(code),
        "_codecs.encode": encode,  # how Python 3 writes bytes for Python 2
    }


def _plain(found: Any, done: dict[int, Any], depth: int = 0) -> Any:
    """Return the data with arrays in place of their holders; raises on anything else, and on what holds itself.

    What is referred to many times is converted once: a small file may refer to itself as often as it likes.
    """
    if depth > _DEEPEST:
        raise pickle.UnpicklingError("its data are nested without end")
    if id(found) in done:
        return done[id(found)]
    if isinstance(found, _Array) and found.value is not None:
        return found.value
    if isinstance(found, dict):
        result: Any = {key: _plain(x, done, depth + 1) for key, x in found.items()}
    elif isinstance(found, list | tuple):
        result = type(found)(_plain(x, done, depth + 1) for x in found)
    elif found is None or isinstance(found, str | bytes | int | float):
        return found
    else:
        raise pickle.UnpicklingError(f"it holds a {type(found).__name__}")
    done[id(found)] = result
    return result

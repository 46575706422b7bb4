"""Weights on disk: safetensors written whole or not at all, fetched and verified, read from public layouts.

A pickle is only ever read through `torch.load(weights_only=True)`, or, when it holds a module instead of a state
dict, through `zoo.pickles`, which runs nothing the file names. This module imports torch only inside its functions.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zoo.errors import BadWeights, suggest
from zoo.fetching import cache_folder, fetch, sha256, verify
from zoo.files import atomic_write

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_ARRAYS = ".npz"
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
_METADATA = "zoo"
"""All metadata is one entry, as JSON: the order of several would differ from one writing to the next."""
_CODES = {
    "int64": "I64", "float64": "F64", "float32": "F32", "int32": "I32", "bfloat16": "BF16", "float16": "F16",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""torch's names of types and the format's, in the order the safetensors library writes them."""


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None
) -> None:
    """Write tensors and metadata (anything JSON holds) as safetensors; the file appears whole or not at all.

    Equal input gives equal bytes. Tensors may be views, on any device, or share memory: each is written in full.

    Raises:
        OSError: the disk is full, ...; an older file at `path` is as it was.
    """
    from safetensors.torch import save_file

    flat: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in tensors.items():
        x = tensor.detach().cpu().contiguous()
        pointer = x.untyped_storage().data_ptr()
        flat[name] = x.clone() if pointer in written else x
        written.add(pointer)
    text = json.dumps(dict(metadata or {}), sort_keys=True)
    with atomic_write(path) as temporary:
        try:
            save_file(flat, temporary, metadata={_METADATA: text})
        except Exception as error:
            # The library reports a full disk as its own kind of error: let the caller see what it is.
            if code := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
            raise


class Lazy(NamedTuple):
    """A tensor that is fetched when it is written."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fetch: Callable[[], Tensor]


def stream_tensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Lazy],
    metadata: Mapping[str, Any] | None = None,
    *,
    foreign: bool = False,
) -> None:
    """Write what `save_tensors` would, byte for byte, holding one tensor at a time.

    Each is fetched once, in the order of the file: `file_order`. With `foreign` the metadata are the one entry that
    other libraries insist on, and none of ours.

    Raises:
        OSError: the disk is full, ...; an older file at `path` is as it was.
    """
    from torch import uint8

    order = file_order(tensors)
    ours = {_METADATA: json.dumps(dict(metadata or {}), sort_keys=True)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"} if foreign else ours}
    end = 0
    for name, lazy in order:
        start, end = end, end + math.prod(lazy.shape) * lazy.dtype.itemsize
        header[name] = {"dtype": _code(lazy.dtype), "shape": list(lazy.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, lazy in order:
            x = lazy.fetch().detach().cpu().contiguous()
            if (tuple(x.shape), x.dtype) != (tuple(lazy.shape), lazy.dtype):
                raise ValueError(
                    f"{name}: {x.dtype} {list(x.shape)} came, {lazy.dtype} {list(lazy.shape)} was announced"
                )
            if x.numel():
                file.write(x.view(-1).view(uint8).numpy().data)
            del x  # before the next is fetched


def file_order(tensors: Mapping[str, Lazy]) -> list[tuple[str, Lazy]]:
    """Return the tensors in the order they have in a file: wide types first, then by name."""
    rank = {code: i for i, code in enumerate(_CODES.values())}
    return sorted(tensors.items(), key=lambda item: (rank[_code(item[1].dtype)], item[0]))


def _code(dtype: torch.dtype) -> str:
    """Return the format's name of a type."""
    name = str(dtype).removeprefix("torch.")
    if name not in _CODES:
        raise ValueError(f"weights of type {name} are not written; convert them to one of {', '.join(_CODES)}")
    return _CODES[name]


def _dtype(code: str) -> torch.dtype:
    """Return the type that the format calls `code`."""
    import torch

    return getattr(torch, {found: name for name, found in _CODES.items()}[code])


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Open a safetensors file; whatever is wrong with it is BadWeights in one line."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            yield file
    except FileNotFoundError:
        raise BadWeights(f"{path}: no such weight file") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise BadWeights(f"{path}: truncated, or not a safetensors file ({_line(error)})") from error


def _metadata(file: Any, path: str | os.PathLike[str]) -> dict[str, Any]:
    entries = dict(file.metadata() or {})
    if _METADATA not in entries:
        return entries
    try:
        return dict(json.loads(entries[_METADATA]))
    except (ValueError, TypeError) as error:
        raise BadWeights(f"{path}: its metadata is damaged ({_line(error)})") from error


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the metadata of a safetensors file.

    Raises:
        BadWeights: the file is missing, truncated, or not safetensors.
    """
    with _opened(path) as file:
        names = file.keys()
        return {name: file.get_tensor(name) for name in names}, _metadata(file, path)


class TensorFile:
    """A safetensors file whose values are read by runs. A context: the file is open inside it.

    With plain reads, so that no more is held than what was asked for: pages of a mapped file count as this process's
    memory once they are read.

    Raises:
        BadWeights: the file is missing, truncated, or not safetensors.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.metadata = read_metadata(path)  # which compares the header with the file's size
        with self.path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            self._entries: dict[str, Any] = json.loads(file.read(length))
        self._entries.pop("__metadata__", None)
        self._begins = 8 + length
        self._file: Any = None

    def __enter__(self) -> TensorFile:
        self._file = self.path.open("rb")
        return self

    def __exit__(self, *error: Any) -> None:
        self._file.close()

    def lazy(self) -> dict[str, Lazy]:
        """Return all tensors, each read when it is fetched, inside the block."""
        return {name: Lazy(self.shape(name), self.dtype(name), partial(self.tensor, name)) for name in self._entries}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape."""
        return tuple(self._entries[name]["shape"])

    def dtype(self, name: str) -> torch.dtype:
        """Return a tensor's type."""
        return _dtype(self._entries[name]["dtype"])

    def tensor(self, name: str) -> Tensor:
        """Return a whole tensor, on the CPU."""
        import torch

        values = torch.empty(self.shape(name), dtype=self.dtype(name))
        self.read(name, 0, values.view(-1))
        return values

    def read(self, name: str, start: int, into: Tensor) -> None:
        """Fill `into` [length], contiguous and of the tensor's type, with the flattened tensor's values from `start`.

        Raises:
            BadWeights: the file ends before.
        """
        from torch import uint8

        self._file.seek(self._begins + self._entries[name]["data_offsets"][0] + start * into.element_size())
        if into.numel() and self._file.readinto(into.view(uint8).numpy().data) != into.nbytes:
            raise BadWeights(f"{self.path}: truncated inside '{name}'")


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the metadata of a safetensors file without reading its tensors; raises as `load_tensors`."""
    with _opened(path) as file:
        return _metadata(file, path)


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load a whole state dict into a module, strictly; `path` is where it came from, for messages.

    A module that overrides `_load_from_state_dict` answers for its own shapes (a fitted part's may differ).

    Raises:
        BadWeights: a key is missing, unexpected, or has another shape. The module is as it was.
    """
    if misfit := mismatch(module, tensors):
        raise BadWeights(f"{path}: {misfit}")
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise BadWeights(f"{path}: does not fit the model ({_line(error)})") from error


def mismatch(module: nn.Module, tensors: Mapping[str, Tensor]) -> str:
    """Return what keeps a state dict from being the module's: a key or a shape. Empty: nothing does."""
    own = module.state_dict()
    missing, unexpected = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if missing:
        key = min(missing)
        return f"lacks '{key}' ({len(missing)} missing){suggest(key, unexpected)}"
    if unexpected:
        key = min(unexpected)
        return f"has an unexpected '{key}' ({len(unexpected)} in all){suggest(key, own)}"
    flexible = _flexible(module)
    for key, x in own.items():
        if x.shape != tensors[key].shape and not key.startswith(flexible):
            return f"'{key}' has shape {list(tensors[key].shape)}, the model's is {list(x.shape)}"
    return ""


def _flexible(module: nn.Module) -> tuple[str, ...]:
    """Return the key prefixes of the submodules that load themselves."""
    from torch import nn

    plain = nn.Module._load_from_state_dict
    found = [name for name, child in module.named_modules() if type(child)._load_from_state_dict is not plain]
    return tuple(f"{name}." if name else "" for name in found)


def read_public(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the flat state dict of a public checkpoint: a file, or a folder of them.

    Files: `.safetensors`; `.npz` of plain arrays; and pickles (`.pt .pth .bin .pkl .ckpt`) of a state dict, of a dict
    around one, or of a whole module. Folders: `encoder.*` with `decoder.*` (their keys get those prefixes), an index
    with its shards, or a single weight file.

    Raises:
        BadWeights: the file is missing, damaged, foreign, holds no tensors, or would run code when unpickled.
    """
    return {f"{prefix}{key}": x for file, prefix in public_files(path) for key, x in _read_file(file).items()}


def public_files(path: str | os.PathLike[str]) -> list[tuple[Path, str]]:
    """Return the files that `read_public` reads, each with what its keys get in front.

    Raises:
        BadWeights: there is no such file or folder, or it is not clear which of a folder's files are meant.
    """
    path = Path(path)
    return _files_of_folder(path) if path.is_dir() else [(path, "")]


def _read_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise BadWeights(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    if path.suffix == _ARRAYS:
        return _read_arrays(path)
    if path.suffix not in _PICKLES:
        raise BadWeights(f"{path}: not a weight file; known are .safetensors {_ARRAYS} {' '.join(_PICKLES)}")
    from zoo.pickles import harvest

    tensors = harvest(_unpickle(path))
    if not tensors:
        raise BadWeights(f"{path}: holds no tensors")
    return tensors


def _read_arrays(path: Path) -> dict[str, Tensor]:
    """Return the arrays of a `.npz`, such as a checkpoint of TensorFlow's is turned into."""
    import zipfile

    import numpy as np
    import torch

    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise BadWeights(f"{path}: cannot be read as plain arrays ({_line(error)})") from error


def _unpickle(path: Path) -> Any:
    import torch

    from zoo.pickles import read_pickle

    try:
        with warnings.catch_warnings(action="ignore"):  # scripted modules warn, fail, and are read below
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception:  # a module, or damaged, in which case it may raise anything: our reader says which
        return read_pickle(path)


def _files_of_folder(folder: Path) -> list[tuple[Path, str]]:
    files = sorted(x for x in folder.iterdir() if x.suffix in (".safetensors", _ARRAYS, *_PICKLES) and x.is_file())
    by_stem = {x.stem: x for x in reversed(files)}  # of two files with one stem, the one whose suffix sorts first
    if "encoder" in by_stem and "decoder" in by_stem:
        return [(by_stem[stem], f"{stem}.") for stem in ("encoder", "decoder")]
    for there, lacking in (("encoder", "decoder"), ("decoder", "encoder")):
        if there in by_stem and len(files) == 1 and files[0].suffix == ".pkl":  # as DALL-E's dVAE was published
            raise BadWeights(f"{folder}: holds {files[0].name} and no file '{lacking}'; they are read together")
    for index in sorted(folder.glob("*.index.json"), reverse=True):  # safetensors before pytorch_model.bin
        return [(shard, "") for shard in _shards(index)]
    preferred = [x for x in files if x.suffix == ".safetensors"] or files
    if len(preferred) != 1:
        names = ", ".join(x.name for x in preferred[:5]) or "none"
        raise BadWeights(f"{folder}: which weight file is meant? found {names}")
    return [(preferred[0], "")]


def _shards(index: Path) -> list[Path]:
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"{index}: not an index of weight files ({_line(error)})") from error
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise BadWeights(f"{index}: names a file outside its folder: '{shard}'")
    return [index.parent / shard for shard in shards]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


__all__ = [
    "cache_folder", "fetch", "load_into", "load_tensors", "mismatch", "public_files", "read_metadata", "read_public",
    "save_tensors", "sha256", "verify",
]  # fmt: skip

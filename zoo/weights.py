"""Weights on disk: safetensors written whole or not at all, fetched and verified, read from public layouts.

A pickle is only ever read through `torch.load(weights_only=True)`, or, when it holds a module instead of a state
dict, through `zoo.pickles`, which runs nothing the file names. This module imports torch only inside its functions.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import BadWeights, suggest
from zoo.fetching import cache_folder, fetch, sha256, verify
from zoo.files import atomic_write

if TYPE_CHECKING:
    from torch import Tensor, nn

_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".ckpt")
_METADATA = "zoo"
"""All metadata is one entry, as JSON: the order of several would differ from one writing to the next."""


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
    own = module.state_dict()
    missing, unexpected = own.keys() - tensors.keys(), tensors.keys() - own.keys()
    if missing:
        key = min(missing)
        raise BadWeights(f"{path}: lacks '{key}' ({len(missing)} missing){suggest(key, unexpected)}")
    if unexpected:
        key = min(unexpected)
        raise BadWeights(f"{path}: has an unexpected '{key}' ({len(unexpected)} in all){suggest(key, own)}")
    flexible = _flexible(module)
    for key, x in own.items():
        if x.shape != tensors[key].shape and not key.startswith(flexible):
            raise BadWeights(f"{path}: '{key}' has shape {list(tensors[key].shape)}, the model's is {list(x.shape)}")
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise BadWeights(f"{path}: does not fit the model ({_line(error)})") from error


def _flexible(module: nn.Module) -> tuple[str, ...]:
    """Return the key prefixes of the submodules that load themselves."""
    from torch import nn

    plain = nn.Module._load_from_state_dict
    found = [name for name, child in module.named_modules() if type(child)._load_from_state_dict is not plain]
    return tuple(f"{name}." if name else "" for name in found)


def read_public(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Return the flat state dict of a public checkpoint: a file, or a folder of them.

    Files: `.safetensors`, and pickles (`.pt .pth .bin .pkl .ckpt`) of a state dict, of a dict around one, or of a
    whole module. Folders: `encoder.*` with `decoder.*` (their keys get those prefixes), an index with its shards, or
    a single weight file.

    Raises:
        BadWeights: the file is missing, damaged, foreign, holds no tensors, or would run code when unpickled.
    """
    path = Path(path)
    if path.is_dir():
        return _read_folder(path)
    if not path.is_file():
        raise BadWeights(f"{path}: no such weight file")
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    if path.suffix not in _PICKLES:
        raise BadWeights(f"{path}: not a weight file; known are .safetensors {' '.join(_PICKLES)}")
    from zoo.pickles import harvest

    tensors = harvest(_unpickle(path))
    if not tensors:
        raise BadWeights(f"{path}: holds no tensors")
    return tensors


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


def _read_folder(folder: Path) -> dict[str, Tensor]:
    files = sorted(x for x in folder.iterdir() if x.suffix in (".safetensors", *_PICKLES) and x.is_file())
    by_stem = {x.stem: x for x in reversed(files)}  # of two files with one stem, the one whose suffix sorts first
    if "encoder" in by_stem and "decoder" in by_stem:
        sides = {stem: read_public(by_stem[stem]) for stem in ("encoder", "decoder")}
        return {f"{stem}.{key}": x for stem, state in sides.items() for key, x in state.items()}
    for index in sorted(folder.glob("*.index.json"), reverse=True):  # safetensors before pytorch_model.bin
        return _read_shards(index)
    preferred = [x for x in files if x.suffix == ".safetensors"] or files
    if len(preferred) != 1:
        names = ", ".join(x.name for x in preferred[:5]) or "none"
        raise BadWeights(f"{folder}: which weight file is meant? found {names}")
    return read_public(preferred[0])


def _read_shards(index: Path) -> dict[str, Tensor]:
    try:
        shards = sorted(set(json.loads(index.read_text("utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"{index}: not an index of weight files ({_line(error)})") from error
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        if Path(shard).name != shard:
            raise BadWeights(f"{index}: names a file outside its folder: '{shard}'")
        tensors |= read_public(index.parent / shard)
    return tensors


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


__all__ = [
    "cache_folder", "fetch", "load_into", "load_tensors", "read_metadata", "read_public", "save_tensors",
    "sha256", "verify",
]  # fmt: skip

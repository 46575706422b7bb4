"""Tensors out of pickled modules, without running what the pickle names.

Some public weights are whole modules, saved with `torch.save(module)`. Unpickling them would import and run the code
they name, and breaks when that code changes. The reader here knows tensors and plain containers; every class it does
not know becomes an inert holder of its pickled state, and every call of something unknown is refused. The module tree
is then walked for its parameters and buffers.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from zoo.errors import BadWeights

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_ARCHIVE = b"PK\x03\x04"
"""How a zip archive begins."""
_DEEPEST = 50
"""Modules inside modules, at most; deeper is a pickle that holds itself."""
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training scripts keep the weights, beside counters and optimiser states."""


def read_pickle(path: Path) -> Any:
    """Return what was pickled with `torch.save`: tensors, containers, and inert holders of modules.

    Nothing the file names is imported or called. Both layouts are read, the zip archive and the older stream.

    Raises:
        BadWeights: the file is not such a pickle, is truncated, or would call something when unpickled.
    """
    try:
        if zipfile.is_zipfile(path):
            return _read_archive(path)
        if damage := _damage(path):
            raise BadWeights(f"{path}: {damage}")
        return _read_stream(path)
    except (PermissionError, BadWeights):
        raise
    except Exception as error:  # a hostile file may break the reader anywhere: each way is the file's fault
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadWeights(f"{path}: cannot be read as weights: {reason}") from error


def _damage(path: Path) -> str:
    """Return what is wrong with a file that cannot be a pickle; empty: nothing is seen."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        return "is empty"
    return "truncated: an archive of torch.save without its end" if start == _ARCHIVE else ""


def harvest(found: Any) -> dict[str, Tensor]:
    """Return the tensors of a module, a state dict, or a dict around one, by dotted name.

    Raises:
        BadWeights: modules are nested in themselves.
    """
    for _ in range(_DEEPEST):
        inner = [found[k] for k in _WRAPPERS if isinstance(found, Mapping) and isinstance(found.get(k), Mapping | Held)]
        if not inner or any(isinstance(x, Tensor) for x in found.values()):
            break
        found = inner[0]
    return dict(_walk(found, "", 0))


def _walk(found: Any, name: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    if depth > _DEEPEST:
        raise BadWeights("its modules are nested without end")
    if isinstance(found, Tensor):
        yield name, found
    elif isinstance(found, Held | Mapping):
        for key, value in _members(found):
            yield from _walk(value, f"{name}.{key}" if name else str(key), depth + 1)


def _members(found: Held | Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
    """Yield the named children: a module's by its own books, a scripted module's attributes, a mapping's items."""
    if not isinstance(found, Held):
        yield from found.items()
        return
    state = found.state if isinstance(found.state, Mapping) else {}
    books = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    if all(isinstance(book, Mapping) for book in books):
        hidden = state.get("_non_persistent_buffers_set") or ()
        yield from ((k, x) for book in books for k, x in book.items() if k not in hidden)  # type: ignore[union-attr]
    else:
        yield from ((k, x) for k, x in state.items() if isinstance(x, Tensor | Held))


class _Inert(type):
    """The class of stand-in classes: they can be instantiated by `__new__`, as modules are, and not called."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise pickle.UnpicklingError(f"it would call {cls.__module__}.{cls.__qualname__}, which is refused")


class Held(metaclass=_Inert):
    """An instance of a class that was not imported; `state` is what it was pickled with."""

    __slots__ = ("state",)
    state: Any

    def __new__(cls, *args: Any) -> Held:
        held = object.__new__(cls)
        held.state = None
        return held

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Let go of what a subclass of a dict holds: settings of a training script, never weights."""


class _Reader(pickle.Unpickler):
    """Unpickles tensors and plain containers, and nothing else."""

    def __init__(self, file: IO[bytes], storage: Callable[[str, torch.dtype, int], Tensor]) -> None:
        super().__init__(file, encoding="utf-8")
        self._storage = storage
        self._known = _known()

    def find_class(self, module: str, name: str) -> Any:
        if (known := self._known.get(f"{module}.{name}")) is not None:
            return known
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        return _Inert(name.rpartition(".")[2], (Held,), {"__module__": module, "__slots__": ()})

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or not pid:
            raise pickle.UnpicklingError("it refers to something outside itself")
        if pid[0] == "module":  # older files carry a module class with its source
            return pid[1]
        kind, dtype, key, _location, count, *view = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or any(x is not None for x in view):
            raise pickle.UnpicklingError("it holds storage of an unknown kind")
        return self._storage(str(key), dtype, int(count))


def _known() -> dict[str, Any]:
    """Return what a pickle may name and call. The functions are made anew for every file, so none can be altered."""

    def tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *rest: Any) -> Tensor:
        view = storage[:0].new_empty(size, device="meta")  # refuses odd sizes without taking memory
        if view.numel() > storage.numel():
            raise pickle.UnpicklingError("it has a tensor larger than its storage")
        return storage.as_strided(size, stride, offset)

    def tensor_v3(storage: Tensor, offset: int, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any) -> Tensor:
        return tensor(storage.view(dtype), offset, size, stride)

    def first(value: Any, *rest: Any) -> Any:
        return value

    def words(*args: Any) -> str:
        return " ".join(map(str, args))

    return {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": tensor_v3,
        "torch._utils._rebuild_parameter": first,
        "torch.jit._pickle.restore_type_tag": first,
        **{f"torch.jit._pickle.build_{kind}list": first for kind in ("int", "tensor", "double", "bool")},
        "torch.device": words,
        "torch.Size": tuple,
        "collections.OrderedDict": OrderedDict,
        "__builtin__.set": set,
        "builtins.set": set,
    }


def _read_archive(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive:
        (index,) = [n for n in archive.namelist() if n.count("/") == 1 and n.endswith("/data.pkl")] or [""]
        if not index:
            raise pickle.UnpicklingError("the archive has no data.pkl")
        root = index.removesuffix("/data.pkl")

        def read(name: str) -> bytes:
            if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # torch never does; a bomb would
                raise pickle.UnpicklingError(f"'{name}' is compressed")
            return archive.read(name)

        if f"{root}/byteorder" in archive.namelist() and read(f"{root}/byteorder") != b"little":
            raise pickle.UnpicklingError("it was written on a big-endian machine")
        loaded: dict[str, Tensor] = {}

        def storage(key: str, dtype: torch.dtype, count: int) -> Tensor:
            if key not in loaded:
                loaded[key] = _from_bytes(read(f"{root}/data/{key}"), dtype, count)
            return loaded[key]

        return _Reader(io.BytesIO(read(index)), storage).load()


def _read_stream(path: Path) -> Any:
    """Read the layout of torch before 1.6: three pickled words, the object, then its storages, one after another."""
    limit = path.stat().st_size
    waiting: dict[str, Tensor] = {}

    def promise(key: str, dtype: torch.dtype, count: int) -> Tensor:
        if key not in waiting:
            if not 0 <= count * dtype.itemsize <= limit:
                raise pickle.UnpicklingError("it is truncated")
            waiting[key] = torch.empty(count, dtype=dtype)
        return waiting[key]

    with path.open("rb") as file:
        if _Reader(file, promise).load() != _LEGACY_MAGIC:
            raise pickle.UnpicklingError("it is not a file of torch.save")
        _version, _system = _Reader(file, promise).load(), _Reader(file, promise).load()
        found = _Reader(file, promise).load()
        for key in _Reader(file, promise).load():
            target = waiting[str(key)]
            count = int.from_bytes(file.read(8), "little", signed=True)
            if count != target.numel():
                raise pickle.UnpicklingError("it is truncated")
            target.copy_(_from_bytes(file.read(count * target.dtype.itemsize), target.dtype, count))
    return found


def _from_bytes(data: bytes, dtype: torch.dtype, count: int) -> Tensor:
    if len(data) < count * dtype.itemsize or count < 0:
        raise pickle.UnpicklingError("it is truncated")
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype, count=count)

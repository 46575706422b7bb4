"""The tensors of a checkpoint, in pieces: each process writes what it holds, any number of processes reads it.

`state-00001-of-00004.safetensors` is what one process holds. A tensor "kind:name" lies in one or several files, each
with a run of the flattened tensor's values: however parameters are sharded (evenly, by padded parts, not at all),
what a process holds of one is such a run. Where it begins and the whole tensor's shape are in the file's header. So
a checkpoint can be taken up by another number of processes, another way of sharding, or another engine: each reads
the runs it needs, and nothing is gathered.

Kinds: "weights" (parameters, and buffers of the state dict), "exp_avg" and "exp_avg_sq" (the optimiser's moments),
"average" (the moving average of the weights).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors import safe_open
from torch import Tensor

from zoo.errors import BadRun
from zoo.weights import Lazy, read_metadata, stream_tensors

MOMENTS = ("exp_avg", "exp_avg_sq")


@attrs.frozen(eq=False)
class Piece:
    """A run of a tensor's values."""

    values: Tensor
    """[length], any device."""
    start: int
    """Place of the first in the flattened tensor."""
    shape: tuple[int, ...]
    """Of the whole tensor."""


def whole(tensor: Tensor) -> Piece:
    """Return all of a tensor."""
    return Piece(tensor.detach().reshape(-1), 0, tuple(tensor.shape))


def write(folder: Path, rank: int, size: int, pieces: Mapping[str, Piece]) -> None:
    """Write what process `rank` of `size` holds; keys are "kind:name"."""
    places = {key: [piece.start, list(piece.shape)] for key, piece in pieces.items()}
    tensors = {
        key: Lazy(tuple(x.values.shape), x.values.dtype, partial(getattr, x, "values")) for key, x in pieces.items()
    }
    stream_tensors(folder / f"state-{rank:05d}-of-{size:05d}.safetensors", tensors, {"places": places})


class Shards:
    """The tensors of a checkpoint, read by runs. A context: the files are open inside it.

    Raises:
        BadRun: the folder holds no state.
        BadWeights: a file is truncated or foreign.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, list[tuple[int, Path]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        paths = sorted(folder.glob("state-*-of-*.safetensors"))
        if not paths:
            raise BadRun(f"{folder} holds no checkpoint of this zoo (state-*.safetensors)")
        for path in paths:
            for key, (start, shape) in read_metadata(path)["places"].items():
                self._places.setdefault(key, []).append((start, path))
                self.shapes[key] = tuple(shape)
        self._open: dict[Path, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> Shards:
        paths = {path for places in self._places.values() for _, path in places}
        self._open = {path: self._stack.enter_context(safe_open(str(path), framework="pt")) for path in paths}
        return self

    def __exit__(self, *error: Any) -> None:
        self._open = {}
        self._stack.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def names(self, kind: str) -> list[str]:
        """Return the names of the tensors of a kind."""
        return [key.partition(":")[2] for key in self._places if key.startswith(f"{kind}:")]

    def read(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Return values [start, stop) of the flattened tensor, on the CPU.

        Raises:
            BadRun: the checkpoint has no such tensor, or not all of these values.
        """
        if key not in self._places:
            raise BadRun(f"{self.folder} has no '{key}': it is of another model or another recipe")
        stop = math.prod(self.shapes[key]) if stop is None else stop
        if start == stop:
            return self._open[self._places[key][0][1]].get_slice(key)[0:0]
        found = sorted(self._runs(key, start, stop), key=lambda run: run[0])
        at = start
        for begins, x in found:
            at = begins + len(x) if begins == at else -1
        if at != stop:
            raise BadRun(f"{self.folder}: '{key}' lacks some of its values {start} to {stop}")
        return found[0][1] if len(found) == 1 else torch.cat([x for _, x in found])

    def _runs(self, key: str, start: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        """Yield (place, values) of the parts of [start, stop) that the files hold."""
        for begins, path in self._places[key]:
            piece = self._open[path].get_slice(key)
            low, high = max(start, begins), min(stop, begins + piece.get_shape()[0])
            if low < high:
                yield low, piece[low - begins : high - begins]

    def lazy(self, name: str, *, raw: bool = False) -> Lazy:
        """Return a parameter or buffer as it is to be kept: its average where there is one and not `raw`."""
        kind = "average" if not raw and f"average:{name}" in self else "weights"
        key = f"{kind}:{name}"
        dtype = self._open[self._places[key][0][1]].get_slice(key)[0:0].dtype
        return Lazy(self.shapes[key], dtype, lambda: self.tensor(name, kind))

    def tensor(self, name: str, kind: str = "weights") -> Tensor:
        """Return a whole tensor, in its shape."""
        key = f"{kind}:{name}"
        return self.read(key).view(self.shapes[key])

"""The tensors of a checkpoint, in pieces: each process writes what it holds, any number of processes reads it.

`state-00001-of-00004.safetensors` is what one process holds. A tensor "kind:name" lies in one or several files, each
with a run of the flattened tensor's values: however parameters are sharded (evenly, by padded parts, not at all),
what a process holds of one is such a run. Where it begins and the whole tensor's shape are in the file's header. So
a checkpoint can be taken up by another number of processes, another way of sharding, or another engine: each reads
the runs it needs, and nothing is gathered.

Kinds: "weights" (parameters, and buffers of the state dict), "exp_avg" and "exp_avg_sq" (the optimiser's moments),
"average" (the moving average of the weights), "error" and "reducer" (error feedback and the rest of a reducer's state).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import attrs
import torch
from torch import Tensor

from zoo.errors import BadRun, BadWeights
from zoo.files import allow_open_files
from zoo.weights import Lazy, TensorFile, stream_tensors

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


class _Run(NamedTuple):
    """Values [start, stop) of a flattened tensor, which `file` holds from its value `at`."""

    start: int
    stop: int
    at: int
    file: TensorFile


class Shards:
    """The tensors of a checkpoint, read by runs. A context: the files are open inside it.

    Raises:
        BadRun: the folder holds no state.
        BadWeights: a file is truncated or foreign.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._places: dict[str, list[tuple[int, TensorFile]]] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._files = [TensorFile(path) for path in sorted(folder.glob("state-*-of-*.safetensors"))]
        if not self._files:
            raise BadRun(f"{folder} holds no checkpoint of this zoo (state-*.safetensors)")
        for file in self._files:
            if "places" not in file.metadata:
                raise BadWeights(f"{file.path}: no piece of a checkpoint of this zoo")
            for key, (start, shape) in file.metadata["places"].items():
                self._places.setdefault(key, []).append((start, file))
                self.shapes[key] = tuple(shape)
        self._stack = ExitStack()

    def __enter__(self) -> Shards:
        allow_open_files(len(self._files))  # as many as there were processes
        for file in self._files:
            self._stack.enter_context(file)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def names(self, kind: str) -> list[str]:
        """Return the names of the tensors of a kind."""
        return [key.partition(":")[2] for key in self._places if key.startswith(f"{kind}:")]

    def read(self, key: str, start: int = 0, stop: int | None = None, *, gaps: bool = False) -> Tensor:
        """Return values [start, stop) of the flattened tensor, on the CPU.

        Args:
            key: "kind:name".
            start, stop: which values; None: to the end.
            gaps: values that no file holds are zero.

        Raises:
            BadRun: the checkpoint has no such tensor, or not all of these values.
        """
        if key not in self._places:
            raise BadRun(f"{self.folder} has no '{key}': it is of another model or another recipe")
        stop = math.prod(self.shapes[key]) if stop is None else stop
        found = sorted(self._runs(key, start, stop), key=lambda run: run.start)
        at = start
        for run in found:
            at = run.stop if run.start == at else -1
        if at != stop and not gaps:
            raise BadRun(f"{self.folder}: '{key}' lacks some of its values {start} to {stop}")
        values = (torch.zeros if gaps else torch.empty)(stop - start, dtype=self._dtype(key))
        for run in found:
            run.file.read(key, run.at, values[run.start - start : run.stop - start])
        return values

    def _runs(self, key: str, start: int, stop: int) -> Iterator[_Run]:
        """Yield the parts of [start, stop) that the files hold."""
        for begins, file in self._places[key]:
            low, high = max(start, begins), min(stop, begins + math.prod(file.shape(key)))
            if low < high:
                yield _Run(low, high, low - begins, file)

    def _dtype(self, key: str) -> torch.dtype:
        return self._places[key][0][1].dtype(key)

    def lazy(self, name: str, *, raw: bool = False) -> Lazy:
        """Return a parameter or buffer as it is to be kept: its average where there is one and not `raw`."""
        kind = "average" if not raw and f"average:{name}" in self else "weights"
        key = f"{kind}:{name}"
        return Lazy(self.shapes[key], self._dtype(key), lambda: self.tensor(name, kind))

    def tensor(self, name: str, kind: str = "weights") -> Tensor:
        """Return a whole tensor, in its shape."""
        key = f"{kind}:{name}"
        return self.read(key).view(self.shapes[key])

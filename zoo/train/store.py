"""Codes of a frozen codebook, computed once and read at every step instead of the pictures.

A store is a saved field of a batch (`codes` or `z`). It is made only where every reading of a row gives the same
value: the transform draws nothing, and encoding twice with different random numbers gives the same. It lies in
`<run>/store/`, named after what it was computed from, so that another codebook, another size or other data never meets
it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from zoo.config import plain
from zoo.files import atomic_text
from zoo.interfaces import Batch, Dataset
from zoo.rng import Rng
from zoo.train.progress import Progress
from zoo.train.world import Processes, World, first
from zoo.weights import save_tensors

log = logging.getLogger("zoo.train")

FIELDS = ("codes", "z")
"""What `encode` may fill from pictures and a store may hold."""

WORLD = World()

_CHUNK = 256
_LARGEST = 2 << 30
"""Bytes; a larger store is not made."""


@attrs.frozen(kw_only=True, eq=False)
class Store:
    """Rows of one encoded field with their captions and labels; read through the operating system's page cache."""

    field: str
    values: np.ndarray
    """[rows, ...] in a compact type."""
    labels: np.ndarray | None
    texts: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.values)

    def read(self, rows: Sequence[int], rng: Rng | None = None) -> Batch:
        """Return the stored field, captions and labels of these rows; no pictures."""
        index = np.asarray(rows, dtype=np.int64)
        values = torch.from_numpy(self.values[index])
        return Batch(
            texts=None if self.texts is None else tuple(self.texts[i] for i in rows),
            labels=None if self.labels is None else torch.from_numpy(self.labels[index]),
            **{self.field: values.long() if self.field == "codes" else values},
        )


def open_store(
    folder: Path,
    generator: Any,
    part: str,
    dataset: Dataset,
    prints: Mapping[str, str],
    *,
    samples: int,
    device: Any,
    world: Processes = WORLD,
) -> Store | None:
    """Return the store of a stage, computing it where it is not there yet, or None where a store makes no sense.

    Args:
        folder: `<run>/store`.
        generator: the system; its `encode` is what is stored.
        part: name of the stage.
        dataset: what is encoded.
        prints: fingerprints of the stage's frozen parts, by role.
        samples: samples the stage will read in all: fewer than the data has rows is no reason for a store.
        device: where the frozen parts are.
        world: the processes; the first computes for all.
    """
    if dataset.stochastic or not prints or samples < len(dataset):
        return None
    head = dataset.read(list(range(min(4, len(dataset)))))
    # One process decides: two encodings need not be alike to the bit on every device.
    field = first(world, lambda: _steady_field(generator, part, head, device))
    if field is None:
        return None
    one = _compact(getattr(generator.encode(part, head.to(device)), field).cpu(), _largest_code(generator, part))
    assert head.images is not None  # else there were no field to fill
    if 2 * one.nbytes > head.images.nbytes or one[0].nbytes * len(dataset) > _LARGEST:
        return None  # no smaller than the pictures, or too large for a disk to be handed unasked
    key = _key(dataset, prints, field, one, {role: settings_of(generator.parts[role]) for role in prints})
    path = folder / f"{key}.safetensors"

    def fill() -> None:
        if not path.exists() or not path.with_suffix(".json").exists():
            _compute(path, generator, part, dataset, field, one.dtype, device)

    first(world, fill)
    return _open(path, field)


def _steady_field(generator: Any, part: str, head: Batch, device: Any) -> str | None:
    """Return the field that `encode` fills from pictures alike whatever random numbers it is given, or None."""
    if head.images is None:
        return None
    rows, moved = range(len(head)), head.to(device)
    one, two = (generator.encode(part, moved, rng=Rng(seed, rows)) for seed in (1, 2))
    new = [name for name in FIELDS if name in one.filled() and name not in head.filled()]
    if len(new) != 1 or not torch.equal(getattr(one, new[0]), getattr(two, new[0])):
        return None
    return new[0]


def _largest_code(generator: Any, part: str) -> int:
    """Return an upper bound of the codes, from the stage's codebook."""
    sizes = [getattr(generator.parts[role], "vocab_size", 0) for role in generator.reads(part)]
    return max(sizes, default=0) or 1 << 31


def _compact(x: Tensor, bound: int) -> Tensor:
    """Return codes in the smallest integer type that holds every code below `bound`; latents as they are."""
    if x.is_floating_point():
        return x
    return x.to(torch.int16 if bound <= 1 << 15 else torch.int32 if bound <= 1 << 31 else torch.int64)


def settings_of(part: Any) -> dict[str, Any] | None:
    """Return a part's config as plain data, None where it has none; how it is trained is none of it."""
    settings = plain(getattr(part, "config", None))
    return {k: x for k, x in settings.items() if k != "train"} if isinstance(settings, dict) else None


def _key(dataset: Dataset, prints: Mapping[str, str], field: str, rows: Tensor, settings: Mapping[str, Any]) -> str:
    """Return what a store is called; the shape of a row says at which size a stage works."""
    shape = [list(rows.shape[1:]), str(rows.dtype)]
    said = json.dumps([dataset.fingerprint, prints, field, shape, settings], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def _compute(
    path: Path, generator: Any, part: str, dataset: Dataset, field: str, dtype: torch.dtype, device: Any
) -> None:
    """Encode every row. Captions are written first, so that the store's presence says that both are whole."""
    log.info("%s: encoding %d pictures once", part, len(dataset))
    values: list[Tensor] = []
    labels: list[Tensor] = []
    texts: list[str] = []
    with Progress(f"{part}: encode", len(dataset), unit="img") as bar:
        for start in range(0, len(dataset), _CHUNK):
            batch = dataset.read(list(range(start, min(start + _CHUNK, len(dataset)))))
            values.append(getattr(generator.encode(part, batch.to(device)), field).cpu().to(dtype))
            labels += [] if batch.labels is None else [batch.labels]
            texts += batch.texts or ()
            bar.advance(len(batch))
    tensors = {"values": torch.cat(values)}
    if labels:
        tensors["labels"] = torch.cat(labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_text(path.with_suffix(".json"), json.dumps({"texts": texts or None}))
    save_tensors(path, tensors, {"field": field, "data": dataset.uri})


def _open(path: Path, field: str) -> Store:
    arrays = mapped(path)
    texts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["texts"]
    return Store(field=field, values=arrays["values"], labels=arrays.get("labels"), texts=texts)


def mapped(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file without reading them: pages come in as rows are asked for.

    bfloat16, which NumPy lacks, comes as int16 of the same bits.
    """
    types = {"I16": np.int16, "I32": np.int32, "I64": np.int64, "F16": np.float16, "F32": np.float32, "BF16": np.int16}
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    return {
        name: np.memmap(path, types[x["dtype"]], "r", 8 + size + x["data_offsets"][0], tuple(x["shape"]))
        if 0 not in x["shape"]
        else np.empty(x["shape"], types[x["dtype"]])  # there is nothing to map
        for name, x in header.items()
    }

"""Embeddings of captions on disk: what a frozen text encoder makes of each, computed once.

A store is a folder of two files, which appears whole or not at all:

    values.safetensors   values [tokens, D] bfloat16: the tokens of one caption after those of another
    index.safetensors    keys [2, n] int64, sorted: 128 bits of each caption's hash; start [n] int64, length [n] int32,
                         of its tokens; in the header which encoder and tokenizer made it

Captions themselves are not kept, padding neither. Both files are mapped: of any number of captions no more is read
than what is asked for. Making a store takes some 50 bytes of memory a caption, and reads them twice.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import attrs
import numpy as np
import torch
from torch import Tensor

from zoo.errors import BadData
from zoo.files import atomic_write
from zoo.train.captions import Distinct, chunks, find, keys_of
from zoo.train.store import mapped
from zoo.weights import read_metadata, save_tensors

FORMAT = 1
_HEADER = 256
"""Bytes before the values: their number is known, and written, last."""
_WINDOW = 16
"""Chunks of captions that are sorted by length before they are encoded, so that little padding is."""

Encode = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
"""Captions to their embeddings [B,T,D] and mask [B,T], True where there is a token."""


@attrs.frozen(kw_only=True)
class Maker:
    """What made a store, or would."""

    prints: Mapping[str, str]
    """Role of a part, such as "text_encoder" -> its fingerprint: of its weights and of its settings."""
    cards: Mapping[str, str]
    """Role -> the card, to say in words."""
    length: int
    """Tokens of the longest caption, T."""
    width: int
    """Width of an embedding, D."""


@attrs.frozen(kw_only=True, eq=False)
class Embeddings:
    """A store that is open."""

    folder: Path
    maker: Maker
    keys: np.ndarray
    start: np.ndarray
    length: np.ndarray
    values: np.ndarray
    """[tokens, D] int16, the bits of bfloat16."""

    @classmethod
    def open(cls, folder: Path) -> Embeddings:
        """Open a store.

        Raises:
            BadData: there is none, or one of a later format.
            BadWeights: a file is truncated.
        """
        index, values = folder / "index.safetensors", folder / "values.safetensors"
        if not (index.is_file() and values.is_file()):
            raise BadData(f"'{folder}' has no embeddings (index.safetensors and values.safetensors); `zoo embed` "
                          "makes them")  # fmt: skip
        said = read_metadata(index)
        read_metadata(values)  # compares the header with the file's size
        if said.get("format") != FORMAT:
            raise BadData(f"{index} has format {said.get('format')!r}; this zoo reads {FORMAT}")
        arrays = mapped(index)
        return cls(folder=folder, maker=Maker(**said["maker"]), values=mapped(values)["values"], **arrays)

    def __len__(self) -> int:
        return len(self.start)

    def check(self, maker: Maker, remedy: str) -> None:
        """Refuse a store that another encoder or tokenizer made.

        Raises:
            BadData: says which part differs; `remedy` is what to type.
        """
        for role in sorted({*maker.prints, *self.maker.prints}):
            if self.maker.prints.get(role) != maker.prints.get(role):
                theirs, ours = (x.cards.get(role, "none") for x in (self.maker, maker))
                what = "with other weights or settings" if theirs == ours else f"and not '{ours}'"
                raise BadData(f"{self.folder} was made by another {role} than this one ('{theirs}' {what}); {remedy}")
        if (self.maker.length, self.maker.width) != (maker.length, maker.width):
            raise BadData(
                f"{self.folder} holds {self.maker.length} tokens of width {self.maker.width} a caption, "
                f"here are {maker.length} of width {maker.width}; {remedy}"
            )

    def read(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the embeddings [B,T,D] float32, zero on padding, and the mask [B,T] bool of captions.

        Raises:
            BadData: one of them is not in the store.
        """
        found = np.zeros((len(texts), self.maker.length, self.maker.width), np.int16)
        mask = np.zeros((len(texts), self.maker.length), bool)
        for i, row in enumerate(self.rows(texts)):
            start, length = self.start[row], self.length[row]
            found[i, :length] = self.values[start : start + length]
            mask[i, :length] = True
        return torch.from_numpy(found).view(torch.bfloat16).float(), torch.from_numpy(mask)

    def rows(self, texts: Sequence[str]) -> np.ndarray:
        """Return where in the index each caption is, [B] int64; raises as `read`."""
        rows = find(self.keys, keys_of(texts))
        if (lost := np.flatnonzero(rows < 0)).size:
            raise BadData(f"{self.folder} lacks the caption '{texts[lost[0]][:60]}': it was made of other captions "
                          "than this data's; `zoo embed` makes one of them")  # fmt: skip
        return rows


def build(
    folder: Path,
    texts: Callable[[], Iterable[str]],
    encode: Encode,
    maker: Maker,
    *,
    distinct: Distinct | None = None,
    chunk: int = 64,
    progress: Callable[[int], None] = lambda captions: None,
) -> Embeddings:
    """Make a store of the different captions of some data, and open it.

    Args:
        folder: does not exist, or is empty.
        texts: returns all captions, in the same order every time.
        encode: see `Encode`; given `chunk` captions at most.
        maker: what `encode` is.
        distinct: of these captions, where that is known.
        progress: called with captions done just now.

    Raises:
        BadData: there are no captions.
        OSError: the disk is full, ... Nothing is left behind.
    """
    known = distinct or Distinct.of(texts())
    if not len(known):
        raise BadData(f"{folder}: no captions, so there is nothing to embed")
    wanted = np.zeros(known.first.max() + 1, bool)
    wanted[known.first] = True
    chosen = itertools.compress(texts(), wanted)
    start, length = np.empty(len(known), np.int64), np.empty(len(known), np.int32)
    with atomic_write(folder) as place:
        place.mkdir()
        with (place / "values.safetensors").open("wb") as file:
            file.write(bytes(_HEADER))
            total = 0
            for some in _by_length(chosen, chunk):
                rows = find(known.keys, keys_of(some))
                length[rows] = counts = _write(file, *encode(some), maker)
                start[rows] = total + np.cumsum(counts) - counts
                total += int(counts.sum())
                progress(len(some))
            file.seek(0)
            file.write(_header(total, maker.width))
        index = {"keys": known.keys, "start": start, "length": length}
        said = {"format": FORMAT, "maker": attrs.asdict(maker)}
        save_tensors(place / "index.safetensors", {k: torch.from_numpy(x) for k, x in index.items()}, said)
    return Embeddings.open(folder)


def _write(file: BinaryIO, text: Tensor, mask: Tensor, maker: Maker) -> np.ndarray:
    """Append the embeddings of some captions without their padding; return the tokens of each."""
    if (text.shape[2], text.shape[1]) != (maker.width, maker.length):
        raise ValueError(f"embeddings have shape {list(text.shape)}, announced are {maker.length} of {maker.width}")
    kept = text.detach()[mask.to(text.device)].to(torch.bfloat16).cpu().contiguous()
    file.write(kept.view(torch.int16).numpy().data)
    return mask.sum(1).cpu().numpy().astype(np.int32)


def _header(tokens: int, width: int) -> bytes:
    """Return the head of a safetensors file of so many values, padded with the spaces that the format allows."""
    entry = {"dtype": "BF16", "shape": [tokens, width], "data_offsets": [0, 2 * tokens * width]}
    text = json.dumps({"values": entry}).encode().ljust(_HEADER - 8)
    return len(text).to_bytes(8, "little") + text


def _by_length(texts: Iterable[str], chunk: int) -> Iterator[list[str]]:
    """Yield chunks of captions of about equal length."""
    for window in chunks(texts, _WINDOW * chunk):
        window.sort(key=len)
        yield from chunks(window, chunk)

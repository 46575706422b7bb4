"""The tokenizers of published systems: their vocabulary imported from the authors' files, or fitted on captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import BadData, BadWeights, NotReady
from zoo.interfaces import Dataset
from zoo.rng import Rng
from zoo_text.captions import PAD, drawn, padded, warn_cut, warn_unread
from zoo_text.configs import PublicBpe
from zoo_text.interop import find_files
from zoo_text.readers import READERS, Reader


class PublicTokenizer(nn.Module):
    """Captions to a published system's ids and back. Its only state is one buffer, the vocabulary as text.

    The buffer is empty before the fit or the import. Padding is 0 everywhere; there is no training noise.
    """

    vocabulary: Tensor

    def __init__(self, config: PublicBpe) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.length = config.length
        self.register_buffer("vocabulary", torch.zeros(0, dtype=torch.uint8))
        self._reader: Reader | None = None
        self._warned = False

    @property
    def ready(self) -> bool:
        """True once fitted, loaded or imported."""
        return len(self.vocabulary) > 0

    def vocabulary_files(self, place: Path) -> dict[str, Path]:
        """Return the files of the vocabulary, by the names that `interop` knows them by: see `interop.find_files`."""
        return find_files(self.config.style, place)

    def fit(self, dataset: Dataset, *, seed: int) -> None:
        """Learn a vocabulary of the same form from the dataset's captions.

        Args:
            dataset: its `texts()` are read once.
            seed: draws the captions of a corpus larger than `config.captions`.

        Raises:
            BadData: the dataset has no captions.
            NotInstalled: the package `tokenizers` is missing.
        """
        from zoo_text.learn import learn

        captions = [_valid(text) for text in drawn(dataset.texts(), self.config.captions, seed) if text.strip("\0 ")]
        if not captions:
            raise BadData(f"{dataset.uri}: no captions, so there is nothing to fit a tokenizer on")
        device = None if self.vocabulary.is_meta else self.vocabulary.device
        self._take(torch.frombuffer(bytearray(learn(captions, self.config)), dtype=torch.uint8).to(device))

    def encode(self, texts: Sequence[str], rng: Rng | None = None) -> tuple[Tensor, Tensor]:
        """Return ids [B,T] int64, 0 where the mask [B,T] bool is False.

        Args:
            texts: B captions. What does not fit T tokens is cut, with one warning that says what.
            rng: training; nothing is drawn of it, but warnings come once.

        Raises:
            NotReady: there is no vocabulary yet.
            NotInstalled: the package `tokenizers` is missing; ruDALL-E's tokenizer does without.
        """
        reader = self._ready()
        rows = [reader.encode(_valid(text)) for text in texts]
        room = self.length - len(reader.start) - reader.keeps_end * len(reader.end)
        if rng is None or not self._warned:
            self._warned |= warn_cut(rows, room, reader.decode) and rng is not None
        if rng is None:
            warn_unread(texts, rows, reader.unknown, "is of letters that the vocabulary lacks")
        marked = [(reader.start + row[:room] + reader.end)[: self.length] for row in rows]
        return padded([_to_first_end(row, reader) for row in marked], self.length, self.vocabulary.device)

    def decode(self, ids: Tensor) -> list[str]:
        """Return one string a row of ids [B,T]; marks, padding and ids without a piece are dropped."""
        reader = self._ready()
        marks = {*reader.start, *reader.end} | ({PAD} if not reader.keeps_end else set())
        rows = [_to_first_end(row, reader) for row in ids.tolist()]
        return [reader.decode([i for i in row if i not in marks and i < reader.size]) for row in rows]

    def _ready(self) -> Reader:
        if not self.ready:
            raise NotReady(
                f"the tokenizer has no vocabulary: it is the published one of {self.config.style}, which "
                "`zoo import RUN FILES --part tokenizer --out RUN` reads (reranker.tokenizer for a reranker's), "
                "or one that training fits"
            )
        if self._reader is None:
            self._reader = READERS[self.config.style](bytes(self.vocabulary.cpu().numpy()))
        return self._reader

    def _take(self, vocabulary: Tensor) -> None:
        """Replace the vocabulary.

        Raises:
            BadWeights: the bytes are of another style, or of more pieces than the config allows.
        """
        reader: Reader | None = None
        if len(vocabulary) and not vocabulary.is_meta:
            reader = READERS[self.config.style](bytes(vocabulary.cpu().numpy()))
            if reader.size > self.vocab_size:
                raise BadWeights(f"the tokenizer has {reader.size} pieces, its config allows {self.vocab_size}")
        self.vocabulary, self._reader = vocabulary, reader

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take a vocabulary of any length: torch itself refuses a buffer of another shape."""
        found = state_dict.get(prefix + "vocabulary")
        if found is not None:
            device = found.device if self.vocabulary.is_meta else self.vocabulary.device  # on meta: where it was read
            self._take(found.detach().to(device, torch.uint8, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _valid(text: str) -> str:
    """Return the caption without half surrogate pairs, which badly named files have."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _to_first_end(row: list[int], reader: Reader) -> list[int]:
    """Return the row up to CLIP's first end mark: its feature is read there, and a caption may spell one."""
    return row[: row.index(reader.end[0]) + 1] if reader.keeps_end and reader.end[0] in row else row

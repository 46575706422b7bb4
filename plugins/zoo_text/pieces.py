"""Pieces and their merges, as one canonical text: the state of a tokenizer that `tokenizers` runs.

[1] R. Sennrich, B. Haddow, A. Birch: Neural Machine Translation of Rare Words with Subword Units. arXiv:1508.07909
[2] github.com/openai/CLIP, clip/simple_tokenizer.py
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from zoo.errors import BadWeights

Merge = tuple[str, str]
START, END = "<|startoftext|>", "<|endoftext|>"
"""CLIP's marks [2]."""


@attrs.frozen
class Pieces:
    """A vocabulary and its merges, the first of which goes first [1].

    Raises:
        BadWeights: ids are not 0, 1, 2, ..., or a merge is of pieces that the vocabulary lacks.
    """

    vocab: Mapping[str, int]
    merges: Sequence[Merge]

    def __attrs_post_init__(self) -> None:
        if sorted(self.vocab.values()) != list(range(len(self.vocab))) or not self.vocab:
            raise BadWeights(f"the vocabulary's {len(self.vocab)} pieces do not have the ids 0, 1, 2, ...")
        for a, b in self.merges:
            for piece in (a, b, a + b):
                if piece not in self.vocab:
                    raise BadWeights(f"the merge '{a} {b}' needs '{piece}', which the vocabulary lacks")

    def need(self, *marks: str) -> None:
        """Raise BadWeights unless the vocabulary has these pieces."""
        for mark in marks:
            if mark not in self.vocab:
                raise BadWeights(f"the vocabulary lacks '{mark}': it is another system's")

    def dump(self) -> bytes:
        """Return the canonical text, the same for the same pieces."""
        names = sorted(self.vocab, key=lambda piece: self.vocab[piece])
        text = json.dumps({"pieces": names, "merges": self.merges}, ensure_ascii=False, separators=(",", ":"))
        return text.encode()

    @classmethod
    def load(cls, content: bytes) -> Pieces:
        """Return what `dump` wrote; raises BadWeights for anything else."""
        try:
            data = json.loads(content)
            vocab = {str(piece): i for i, piece in enumerate(data["pieces"])}
            merges = [(str(a), str(b)) for a, b in data["merges"]]
        except (ValueError, KeyError, TypeError) as error:
            raise BadWeights("the tokenizer's bytes are not a list of pieces and merges") from error
        return cls(vocab, merges)


def from_json(vocab: Any, merges: Any) -> Pieces:
    """Return the pieces of a vocabulary {piece: id} and merges, each a pair or "a b".

    Raises:
        BadWeights: they are of other types, or do not belong together.
    """
    if not isinstance(vocab, dict) or not all(type(i) is int for i in vocab.values()):
        raise BadWeights("the vocabulary is not a table from pieces to ids")
    if not isinstance(merges, list):
        raise BadWeights("the merges are not a list")
    return Pieces(vocab, [_pair(merge) for merge in merges])


def from_lines(lines: Sequence[str]) -> list[Merge]:
    """Return the merges "a b" of the lines of a file, whose first may be a comment.

    Raises:
        BadWeights: a line is no pair.
    """
    body = lines[1:] if lines and "#version" in lines[0] else lines
    return [_pair(line.rstrip("\r")) for line in body if line.strip()]


def _pair(merge: Any) -> Merge:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(x, str) and x for x in parts):
        raise BadWeights(f"'{str(merge)[:40]}' is no merge of two pieces")
    return parts[0], parts[1]


def of_bytes(merges: Sequence[Merge]) -> Pieces:
    """Return CLIP's vocabulary [2] of merges: letters that stand for bytes, the same at a word's end, merges, marks."""
    letters = [letter for _, letter in sorted(byte_letters().items(), key=lambda item: _rank(item[0]))]
    names = [*letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges), START, END]
    vocab = {name: i for i, name in enumerate(names)}
    if len(vocab) != len(names):
        raise BadWeights("two merges make one piece")
    return Pieces(vocab, merges)


def byte_letters() -> dict[int, str]:
    """Return the letter that stands for each byte [2]: its own in Latin-1 if that is printable, else one from 256."""
    hidden = iter(range(256, 512))
    return {byte: chr(byte if _printable(byte) else next(hidden)) for byte in range(256)}


def _printable(byte: int) -> bool:
    return 33 <= byte <= 126 or 161 <= byte <= 172 or 174 <= byte <= 255


def _rank(byte: int) -> tuple[bool, int]:
    return not _printable(byte), byte

"""Byte-pair segmentation with dropout, on the vocabulary of a fitted sentencepiece model.

Sentencepiece can drop merges itself, but draws from one global source; here every caption has its own, so what it
becomes does not depend on its neighbours, on the process or on the order of calls.

[1] I. Provilkov, D. Emelianenko, E. Voita: BPE-Dropout. arXiv:1910.13267
"""

from __future__ import annotations

import random
import re

from sentencepiece import SentencePieceProcessor

SPACE = "\u2581"
"""What sentencepiece writes for a space; every word begins with it, and no piece has it anywhere else."""
_WORD = re.compile(f"{SPACE}[^{SPACE}]*")


class Merges:
    """The merge table of a fitted model.

    Args:
        processor: a byte-pair model with byte fallback.
    """

    def __init__(self, processor: SentencePieceProcessor) -> None:
        self._pieces: dict[str, tuple[float, int]] = {}  # piece -> (score, id); the higher score merges first
        self._bytes: dict[int, int] = {}
        for i in range(processor.get_piece_size()):
            piece = processor.id_to_piece(i)
            if processor.is_byte(i):
                self._bytes[int(piece[3:5], 16)] = i
            elif not (processor.is_control(i) or processor.is_unknown(i)):
                self._pieces[piece] = (processor.get_score(i), i)

    def encode(self, text: str, drop: float, source: random.Random) -> list[int]:
        """Return the ids of a normalised caption; at every step each possible merge is left out with odds `drop`."""
        words = _WORD.findall(SPACE + text.replace(" ", SPACE)) if text else []
        return [i for word in words for piece in self._segment(word, drop, source) for i in self._ids(piece)]

    def _segment(self, word: str, drop: float, source: random.Random) -> list[str]:
        """[1] algorithm 1: best remaining merge first, leftmost among equals, until none is left."""
        symbols = list(word)
        while True:
            best, where = None, -1
            for i in range(len(symbols) - 1):
                entry = self._pieces.get(symbols[i] + symbols[i + 1])
                if entry is None or (drop > 0 and source.random() < drop):
                    continue
                if best is None or entry[0] > best:
                    best, where = entry[0], i
            if best is None:
                return symbols
            symbols[where : where + 2] = [symbols[where] + symbols[where + 1]]

    def _ids(self, piece: str) -> list[int]:
        entry = self._pieces.get(piece)
        return [entry[1]] if entry is not None else [self._bytes[b] for b in piece.encode()]

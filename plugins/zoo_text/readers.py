"""How each published system reads a caption, given its vocabulary.

Each reader is made of the bytes that are a tokenizer's state, and has `size`, the marks `start` and `end` (lists of
ids), `keeps_end` (a caption that is cut keeps its end mark), `unknown` (the ids of what has no piece), `encode` of one
caption without marks, and `decode` of such ids. `tokenizers` is imported when a caption is read, not before. T5's is
in `t5_reader.py`.

[1] transformers, models/clip/tokenization_clip.py
[2] tokenizers, CharBPETokenizer; github.com/kakaobrain/minDALL-E, dalle/models/tokenizer.py and __init__.py
[3] github.com/ai-forever/ru-dalle, rudalle/tokenizer.py and rudalle/pipelines.py
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

from zoo.errors import BadWeights, NotInstalled
from zoo_text.pieces import END, START, Pieces
from zoo_text.t5_reader import T5Reader
from zoo_text.yttm import Yttm

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What is a word to CLIP: a mark, an English ending, letters, one digit, or other signs."""
PAD_PIECE, UNKNOWN_PIECE = "[PAD]", "[UNK]"
"""minDALL-E's [2]; the first is its id 0."""


class Reader(Protocol):
    """A vocabulary and how it is applied."""

    size: int
    start: list[int]
    end: list[int]
    keeps_end: bool
    unknown: range

    def encode(self, text: str) -> list[int]:
        """Return the ids of a caption of valid Unicode, without marks."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids; marks and padding are dropped."""


def library() -> Any:
    """Return the package `tokenizers`.

    Raises:
        NotInstalled: it is not there.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise NotInstalled("this tokenizer needs a package: pip install 'image-zoo[tokenizers]'") from error
    return tokenizers


class ClipReader:
    """CLIP's [1]: NFC, single spaces, lower case; words spelled in bytes, the last of each marked."""

    keeps_end = True
    unknown = range(0)

    def __init__(self, content: bytes) -> None:
        self.pieces = Pieces.load(content)
        self.pieces.need(START, END)
        self.size = len(self.pieces.vocab)
        self.start, self.end = [self.pieces.vocab[START]], [self.pieces.vocab[END]]

    @functools.cached_property
    def _tokenizer(self) -> Any:
        kit, vocab = library(), dict(self.pieces.vocab)
        merges = list(self.pieces.merges)
        made = kit.Tokenizer(kit.models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=END))
        made.normalizer, made.pre_tokenizer = clip_words(kit)
        made.decoder = kit.decoders.ByteLevel()
        made.add_special_tokens([START, END])
        return made

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids).replace("</w>", " ").strip()


def clip_words(kit: Any) -> tuple[Any, Any]:
    """Return CLIP's normaliser and what parts its words [1]."""
    clean = [kit.normalizers.NFC(), kit.normalizers.Replace(kit.Regex(r"\s+"), " "), kit.normalizers.Lowercase()]
    parts = [
        kit.pre_tokenizers.Split(kit.Regex(_WORDS), behavior="removed", invert=True),
        kit.pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
    return kit.normalizers.Sequence(clean), kit.pre_tokenizers.Sequence(parts)


class CharReader:
    """minDALL-E's [2]: lower case, words parted at spaces and signs, spelled in letters, the last of each marked."""

    keeps_end = False

    def __init__(self, content: bytes) -> None:
        self.start: list[int] = []
        self.end: list[int] = []
        self.pieces = Pieces.load(content)
        self.pieces.need(PAD_PIECE, UNKNOWN_PIECE)
        if self.pieces.vocab[PAD_PIECE] != 0:
            raise BadWeights(f"'{PAD_PIECE}' has id {self.pieces.vocab[PAD_PIECE]}, and padding is 0")
        self.size = len(self.pieces.vocab)
        self.unknown = range(self.pieces.vocab[UNKNOWN_PIECE], self.pieces.vocab[UNKNOWN_PIECE] + 1)

    @functools.cached_property
    def _tokenizer(self) -> Any:
        made = library().CharBPETokenizer(
            dict(self.pieces.vocab), list(self.pieces.merges), unk_token=UNKNOWN_PIECE, lowercase=True
        )
        made.add_special_tokens([PAD_PIECE])
        return made

    def encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text).ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)


class YttmReader:
    """ruDALL-E's [3]: lower case, a mark at each end; a caption that is cut loses the last."""

    keeps_end = False

    def __init__(self, content: bytes) -> None:
        self._model = model = Yttm(content)
        if model.pad != 0 or min(model.start, model.end) < 0:
            raise BadWeights("the youtokentome model has no marks for start and end, or another padding than 0")
        self.size, self.start, self.end = model.size, [model.start], [model.end]
        self.unknown = range(model.unknown, model.unknown + 1)

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text.lower().strip())

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode(ids)


READERS: dict[str, type[ClipReader] | type[CharReader] | type[YttmReader] | type[T5Reader]] = {
    "clip": ClipReader,
    "mindalle": CharReader,
    "rudalle": YttmReader,
    "t5": T5Reader,
}

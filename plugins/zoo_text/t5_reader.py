"""T5's vocabulary: a sentencepiece model of likeliest pieces, and 100 sentinels after them.

[1] T. Kudo, J. Richardson: SentencePiece. arXiv:1808.06226
[2] C. Raffel et al.: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer.
    arXiv:1910.10683, section 2.4.1; transformers, models/t5/tokenization_t5.py
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from zoo.errors import BadWeights
from zoo_text.captions import PAD, alphabet
from zoo_text.configs import SENTINELS

END, UNKNOWN = 1, 2
"""Beside padding, which is 0."""


class T5Reader:
    """T5's [2]: case is kept, the model's own normalisation applies, an end mark follows."""

    keeps_end = True
    unknown = range(UNKNOWN, UNKNOWN + 1)

    def __init__(self, content: bytes) -> None:
        try:
            self._model = model = SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise BadWeights("the tokenizer's bytes are not a sentencepiece model") from error
        if (model.pad_id(), model.eos_id(), model.unk_id()) != (PAD, END, UNKNOWN):
            raise BadWeights("the sentencepiece model has other ids than 0, 1 and 2 for padding, end and unknown")
        self.size = model.get_piece_size() + SENTINELS
        self.start: list[int] = []
        self.end = [END]

    def encode(self, text: str) -> list[int]:
        return self._model.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([i for i in ids if UNKNOWN < i < self._model.get_piece_size()])


def learn(captions: Iterable[str], size: int) -> bytes:
    """Return a sentencepiece model of the same form for captions, of at most `size` - 100 pieces."""
    texts = [" ".join(text.replace("\0", " ").split()) for text in captions]
    letters = alphabet(texts, (size - SENTINELS) // 2)
    known = ("".join(c if c in letters else " " for c in text) for text in texts)
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in known if text.strip()]),
        model_writer=written,
        model_type="unigram",
        vocab_size=size - SENTINELS,
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=PAD,
        eos_id=END,
        unk_id=UNKNOWN,
        bos_id=-1,
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()

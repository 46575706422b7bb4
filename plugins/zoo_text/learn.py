"""Vocabularies in the published forms, fitted on captions: for training such a system anew.

[1] tokenizers, BpeTrainer
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from zoo_text import t5_reader, yttm
from zoo_text.captions import alphabet
from zoo_text.configs import BYTES, PublicBpe
from zoo_text.pieces import Pieces, byte_letters, from_json, of_bytes
from zoo_text.readers import PAD_PIECE, UNKNOWN_PIECE, clip_words, library


def learn(captions: Iterable[str], config: PublicBpe) -> bytes:
    """Return the state of a tokenizer of at most `config.vocab_size` pieces; the same every time."""
    ways = {"clip": _clip, "mindalle": _mindalle, "rudalle": _rudalle, "t5": t5_reader.learn}
    return ways[config.style](captions, config.vocab_size)


def _clip(captions: Iterable[str], size: int) -> bytes:
    kit = library()
    made = kit.Tokenizer(kit.models.BPE(end_of_word_suffix="</w>"))
    made.normalizer, made.pre_tokenizer = clip_words(kit)
    learnt = _train(made, captions, size, [], byte_letters().values(), "</w>")
    return of_bytes(learnt.merges[: size - BYTES]).dump()


def _mindalle(captions: Iterable[str], size: int) -> bytes:
    made = library().CharBPETokenizer(unk_token=UNKNOWN_PIECE, lowercase=True)._tokenizer
    texts = [made.normalizer.normalize_str(text) for text in captions]
    letters = alphabet(texts, size // 4)  # each is two pieces, which leaves half of them to merges
    return _train(made, _known(texts, letters), size, [PAD_PIECE, UNKNOWN_PIECE], letters, "</w>").dump()


def _rudalle(captions: Iterable[str], size: int) -> bytes:
    kit, marks = library(), ["<PAD>", "<UNK>", "<BOS>", "<EOS>"]
    made = kit.Tokenizer(kit.models.BPE())
    made.pre_tokenizer = kit.pre_tokenizers.Metaspace(replacement=yttm.SPACE, prepend_scheme="always")
    texts = [text.lower().replace(yttm.SPACE, " ") for text in captions]
    letters = alphabet(texts, size // 2)
    known = (" ".join(text.split()) for text in _known(texts, letters))
    learnt = _train(made, known, size, marks, letters | {yttm.SPACE}, "")
    chars = {piece: i for piece, i in learnt.vocab.items() if len(piece) == 1}
    rules = [(learnt.vocab[a], learnt.vocab[b], learnt.vocab[a + b]) for a, b in learnt.merges]
    return yttm.dump(chars, rules, (1, 0, 2, 3))


def _known(texts: Iterable[str], letters: set[str]) -> Iterator[str]:
    """Yield the texts with spaces for other letters."""
    return ("".join(c if c in letters else " " for c in text) for text in texts)


def _train(
    tokenizer: Any, captions: Iterable[str], size: int, marks: list[str], letters: Iterable[str], suffix: str
) -> Pieces:
    """Return the pieces that [1] finds, beginning with the marks and, if words end in a suffix, each letter with it.

    Left to itself it numbers letters with a suffix in an order that changes from call to call, and ties with them.
    """
    known = sorted(letter for letter in letters if letter.strip())
    ended = [letter + suffix for letter in known] if suffix else []
    trainer = library().trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*marks, *ended], initial_alphabet=known, show_progress=False,
        **({"end_of_word_suffix": suffix} if suffix else {}),
    )  # fmt: skip
    tokenizer.train_from_iterator(captions, trainer)
    found = json.loads(tokenizer.to_str())["model"]
    return from_json(found["vocab"], found["merges"])

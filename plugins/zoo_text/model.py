"""The byte-pair tokenizer: fitted on captions, kept as the bytes of a sentencepiece model.

[1] T. Kudo, J. Richardson: SentencePiece. arXiv:1808.06226
[2] I. Provilkov, D. Emelianenko, E. Voita: BPE-Dropout. arXiv:1910.13267
[3] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from __future__ import annotations

import io
import random
import unicodedata
from collections.abc import Sequence
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from torch import Tensor, nn

from zoo.errors import BadData, BadWeights, NotReady
from zoo.interfaces import Dataset
from zoo.rng import Rng
from zoo_text.captions import PAD, alphabet, drawn, padded, warn_cut, warn_unread
from zoo_text.configs import RESERVED, Bpe
from zoo_text.merges import SPACE, Merges

UNKNOWN, END = 1, 2


def normalise(text: str, lowercase: bool) -> str:
    """Return the caption as the tokenizer sees it: lower case, Unicode NFC, one space between words.

    NFC and not NFKC: it joins what is one letter (Korean syllables from a Mac's file names come apart) and keeps
    what is a sign of its own (the trademark sign, full-width forms, emoji).
    """
    text = text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair, from a badly named file
    text = unicodedata.normalize("NFC", text.lower() if lowercase else text)
    return " ".join(text.replace(SPACE, " ").replace("\0", " ").split())


def _train(captions: Sequence[str], vocab_size: int) -> bytes:
    """Return a sentencepiece model of at most `vocab_size` pieces. One thread, no sampling: the same every time."""
    letters = alphabet(captions, (vocab_size - RESERVED) // 2)  # leaves room for merges in any script
    known = ("".join(c if c in letters else " " for c in text) for text in captions)
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([text for text in known if text.strip()]),
        model_writer=written,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        pad_id=PAD,
        unk_id=UNKNOWN,
        eos_id=END,
        bos_id=-1,
        pad_piece="<pad>",
        eos_piece="<end>",
        max_sentence_length=1 << 20,
        num_threads=1,
        minloglevel=2,
    )
    return written.getvalue()


class BpeTokenizer(nn.Module):
    """Captions to ids and back. Its only state is one buffer, the bytes of the model; it is empty before the fit.

    Ids: 0 padding, 1 unused, 2 end, 3 to 258 single bytes, then merged pieces and letters.
    """

    proto: Tensor

    def __init__(self, config: Bpe) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.length = config.length
        self.register_buffer("proto", torch.zeros(0, dtype=torch.uint8))
        self._processor: SentencePieceProcessor | None = None
        self._merges: Merges | None = None
        self._warned = False

    @property
    def ready(self) -> bool:
        """True once fitted or loaded."""
        return len(self.proto) > 0

    def fit(self, dataset: Dataset, *, seed: int) -> None:
        """Learn the pieces from the dataset's captions.

        Args:
            dataset: its `texts()` are read once.
            seed: draws the captions of a corpus larger than `config.captions`.

        Raises:
            BadData: the dataset has no captions.
        """
        chosen = drawn(dataset.texts(), self.config.captions, seed)
        captions = [text for text in (normalise(t, self.config.lowercase) for t in chosen) if text]
        if not captions:
            raise BadData(f"{dataset.uri}: no captions, so there is nothing to fit a tokenizer on")
        try:
            model = _train(captions, self.vocab_size)
        except RuntimeError as error:
            line = " ".join(str(error).split())
            raise BadData(f"{dataset.uri}: no tokenizer could be fitted on its captions ({line})") from error
        device = None if self.proto.is_meta else self.proto.device
        self._take(torch.frombuffer(bytearray(model), dtype=torch.uint8).to(device))

    def encode(self, texts: Sequence[str], rng: Rng | None = None) -> tuple[Tensor, Tensor]:
        """Return ids [B,T] int64, 0 where the mask [B,T] bool is False.

        Args:
            texts: B captions. What does not fit T tokens is cut, with one warning that says what.
            rng: B rows; in training, merges are left out with probability `config.bpe_dropout` [2].

        Raises:
            NotReady: the tokenizer is not fitted.
        """
        processor = self._ready()
        clean = [normalise(text, self.config.lowercase) for text in texts]
        if rng is not None and self.config.bpe_dropout > 0:
            rows = self._noisy(clean, rng)
        else:
            rows = processor.encode(clean) if clean else []
        room = self.length - self.config.end
        self._warn(rows, room, training=rng is not None)
        if rng is None:
            spelled = "is spelled in bytes: the tokenizer was fitted on no such letters"
            warn_unread(texts, rows, range(END + 1, RESERVED), spelled)
        return padded([row[:room] + [END] * self.config.end for row in rows], self.length, self.proto.device)

    def decode(self, ids: Tensor) -> list[str]:
        """Return one string a row of ids [B,T]; padding, end and ids without a piece are dropped."""
        processor = self._ready()
        size = processor.get_piece_size()
        return [processor.decode([i for i in row if END < i < size]) for row in ids.tolist()]

    def _noisy(self, clean: Sequence[str], rng: Rng) -> list[list[int]]:
        """Segment with dropout; a caption's noise comes from its own row of `rng`."""
        if self._merges is None:
            self._merges = Merges(self._ready())
        seeds = rng.integers(1 << 53, device="cpu").tolist()
        drop = self.config.bpe_dropout
        return [self._merges.encode(t, drop, random.Random(s)) for t, s in zip(clean, seeds, strict=True)]

    def _warn(self, rows: Sequence[list[int]], room: int, *, training: bool) -> None:
        """Say what is cut: at every call, but once in training, where it would come at every step."""
        if not (training and self._warned):
            self._warned |= warn_cut(rows, room, self._ready().decode) and training

    def _ready(self) -> SentencePieceProcessor:
        if not self.ready:
            raise NotReady(
                "the tokenizer is not fitted: train the part of the run that reads it; imported weights need the "
                "pieces they were trained on: see bpe-clip, bpe-mindalle and bpe-rudalle"
            )
        if self._processor is None:
            self._processor = SentencePieceProcessor(model_proto=bytes(self.proto.cpu().numpy()))
        return self._processor

    def _take(self, proto: Tensor) -> None:
        """Replace the model.

        Raises:
            BadWeights: the bytes are no sentencepiece model, or one of more pieces than the config allows.
        """
        if len(proto) and not proto.is_meta:
            try:
                size = SentencePieceProcessor(model_proto=bytes(proto.cpu().numpy())).get_piece_size()
            except RuntimeError as error:
                raise BadWeights("the tokenizer's bytes are not a sentencepiece model") from error
            if size > self.vocab_size:
                raise BadWeights(f"the tokenizer has {size} pieces, its config allows {self.vocab_size}")
        self.proto = proto
        self._processor, self._merges = None, None

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take a model of any length: torch itself refuses a buffer of another shape."""
        proto = state_dict.get(prefix + "proto")
        if proto is not None:
            device = proto.device if self.proto.is_meta else self.proto.device  # built on meta: stay where it was read
            self._take(proto.detach().to(device, torch.uint8, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *args)

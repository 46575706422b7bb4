"""Sizes of the tokenizers.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
[2] A. Radford et al.: Learning Transferable Visual Models From Natural Language Supervision. arXiv:2103.00020
[3] I. Provilkov, D. Emelianenko, E. Voita: BPE-Dropout. arXiv:1910.13267
[4] github.com/openai/CLIP, clip/simple_tokenizer.py and clip/clip.py
[5] github.com/kakaobrain/minDALL-E, dalle/models/tokenizer.py; its vocabulary has 16 384 pieces
[6] github.com/ai-forever/ru-dalle, rudalle/tokenizer.py and rudalle/pipelines.py
[7] C. Raffel et al.: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer.
    arXiv:1910.10683; transformers, models/t5/tokenization_t5.py
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import validators as v

from zoo.cost import Cost
from zoo.parts import Facts

RESERVED = 3 + 256
"""Padding, unknown, end, and one piece for each byte."""


@attrs.frozen(kw_only=True)
class Bpe:
    """A byte-pair tokenizer, fitted on captions."""

    vocab_size: int = attrs.field(default=1024, validator=v.ge(RESERVED + 32))
    """Upper bound of the number of pieces, and the size of every table built on it: a small corpus has fewer.
    259 are reserved (padding, unknown, end, the 256 bytes that spell what has no piece)."""
    length: int = attrs.field(default=24, validator=v.ge(2))
    """Tokens of one encoded caption; longer captions are cut."""
    lowercase: bool = True
    """Captions are lower-cased ([1] section 2.2)."""
    bpe_dropout: float = attrs.field(default=0.0, validator=v.and_(v.ge(0), v.le(1)))
    """Probability that a merge is left out in training [3]; 0.1 in [1] section 2.2."""
    end: bool = False
    """Append the end piece to every caption, as CLIP reads its text feature there ([2] section 2.4)."""
    captions: int = attrs.field(default=1_000_000, validator=v.ge(1))
    """Most captions the fit reads; of a larger corpus the seed draws as many."""

    def facts(self, image_size: int) -> Facts:
        """Return the vocabulary and length, which no picture size changes."""
        return Facts(vocab_size=self.vocab_size, length=self.length)

    def cost(self, batch: int = 1) -> Cost:
        """Return nothing: it is fitted, and has no parameters."""
        return Cost()


BYTES = 2 * 256 + 2
"""Pieces of CLIP's that are no merges: each byte inside a word and at its end, and two marks ([4])."""
SENTINELS = 100
"""Pieces of T5's that are in no file: the last ids, which stood for masked spans in its pre-training [7]."""


@attrs.frozen(kw_only=True)
class PublicBpe:
    """A tokenizer that reads captions as a published system does; its vocabulary is imported, or fitted.

    T5's picks the likeliest pieces, the others merge pairs.
    """

    style: Literal["clip", "mindalle", "rudalle", "t5"] = "clip"
    """Whose: how captions are cleaned and cut into words, what is done with unknown letters, which marks are set."""
    vocab_size: int = attrs.field(default=49408, validator=v.ge(16))
    """Pieces of the vocabulary, marks included. An imported one has exactly so many, a fitted one at most."""
    length: int = attrs.field(default=77, validator=v.ge(3))
    """Tokens of one encoded caption, marks included; longer captions are cut."""
    captions: int = attrs.field(default=1_000_000, validator=v.ge(1))
    """Most captions a fit reads; of a larger corpus the seed draws as many."""

    @vocab_size.validator
    def _spells_bytes(self, attribute: Any, value: int) -> None:
        if self.style == "clip" and value < BYTES:
            raise ValueError(f"vocab_size: {value} is too few for style='clip', which spells {BYTES} bytes and marks")
        if self.style == "t5" and value < SENTINELS + 16:
            raise ValueError(f"vocab_size: {value} is too few for style='t5', which has {SENTINELS} sentinels")

    def facts(self, image_size: int) -> Facts:
        """Return the vocabulary and length, which no picture size changes."""
        return Facts(vocab_size=self.vocab_size, length=self.length)

    def cost(self, batch: int = 1) -> Cost:
        """Return nothing: it has no parameters."""
        return Cost()


def bpe_clip() -> PublicBpe:
    """Return CLIP's tokenizer: 49 408 pieces of bytes, 77 tokens with a mark at each end ([2] section 2.4, [4])."""
    return PublicBpe(style="clip", vocab_size=49408, length=77)


def bpe_mindalle() -> PublicBpe:
    """Return minDALL-E's tokenizer: 16 384 pieces of letters, 64 tokens, no marks [5]."""
    return PublicBpe(style="mindalle", vocab_size=16384, length=64)


def bpe_rudalle() -> PublicBpe:
    """Return ruDALL-E's tokenizer: 16 384 pieces of letters, 128 tokens with a mark at each end [6]."""
    return PublicBpe(style="rudalle", vocab_size=16384, length=128)


def sentencepiece_t5() -> PublicBpe:
    """Return T5's tokenizer: 32 000 pieces and 100 sentinels [7], 128 tokens with an end mark (NeMo's for Imagen)."""
    return PublicBpe(style="t5", vocab_size=32100, length=128)


def bpe_16384() -> Bpe:
    """Return DALL-E's text side: 16 384 pieces, 256 tokens, lower case, 10 % dropout ([1] section 2.2)."""
    return Bpe(vocab_size=16384, length=256, bpe_dropout=0.1)


def bpe_16384_128() -> Bpe:
    """Return a tokenizer of ruDALL-E's size: 16 384 pieces, 128 tokens."""
    return Bpe(vocab_size=16384, length=128, bpe_dropout=0.1)


def bpe_16384_64() -> Bpe:
    """Return a tokenizer of minDALL-E's size: 16 384 pieces, 64 tokens."""
    return Bpe(vocab_size=16384, length=64, bpe_dropout=0.1)


def bpe_49408() -> Bpe:
    """Return CLIP's text side in size: 49 408 pieces, 77 tokens, lower case, an end piece ([2] section 2.4)."""
    return Bpe(vocab_size=49408, length=77, end=True)


def bpe_shapes() -> Bpe:
    """Return a tokenizer for short captions of few words; every word of `shapes` becomes one piece."""
    return Bpe(vocab_size=1024, length=20)


def bpe_tiny() -> Bpe:
    """Return the smallest one, for tests."""
    return Bpe(vocab_size=384, length=32)

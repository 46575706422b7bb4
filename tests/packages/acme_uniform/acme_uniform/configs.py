"""Configs of the plugin. Imports no torch."""

from typing import Literal

import attrs
from attrs import validators as v

from zoo.cost import Cost, Tally, bound
from zoo.parts import Facts, Grid, Recipe, Ref
from zoo.systems import Autoregressive


@attrs.frozen(kw_only=True)
class Uniform:
    """Independent codes: logits are a table over places plus the mean of the caption's word vectors."""

    vocab_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(2)))
    """Number of codes; None: the codebook's."""
    grids: tuple[Grid, ...] | None = None
    """Code grids; None: the codebook's."""
    text_vocab: int | None = attrs.field(default=None, validator=v.optional(v.ge(2)))
    """Number of caption pieces; None: the tokenizer's."""
    text_length: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Tokens of a caption; None: the tokenizer's."""
    reads: Literal["ids"] = "ids"
    """It reads captions."""
    cond_drop: float = attrs.field(default=0.1, validator=v.and_(v.ge(0), v.lt(1)))
    """Share of training samples whose caption is dropped, so that guidance works."""
    train: Recipe = attrs.field(default=Recipe(lr=1e-1, batch=16, steps=50))
    """How it is trained."""

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no part depends on a prior."""
        return Facts()

    def cost(self, batch: int = 1) -> Cost:
        """Return both tables, and what a sample's loss keeps: its words, and a log-probability a place and code."""
        bound(self, "vocab_size", "grids", "text_vocab", "text_length")
        length, codes = sum(h * w for h, w in self.grids or ()), self.vocab_size or 0
        t = Tally()
        t.weight("table", length, codes)
        t.weight("words", self.text_vocab or 0, codes)
        t.keep(raw=9 * (self.text_length or 0))
        t.cross_entropy(length, codes)
        return t.cost()


def uniform() -> Uniform:
    """Return a prior that stands alone over 16 codes of 32."""
    return Uniform(vocab_size=32, grids=((4, 4),), text_vocab=384, text_length=32)


def dalle_uniform() -> Autoregressive:
    """Return DALL-E's smallest parts around our prior."""
    return Autoregressive(
        image_size=16,
        tokenizer=Ref("bpe-tiny", "tokenizer"),
        codebook=Ref("dvae-tiny", "codebook"),
        prior=Ref("acme/uniform", "prior"),
        reranker=Ref("clip-tiny", "reranker"),
    )

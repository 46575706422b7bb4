"""Configs of whole systems. Imports no torch; `zoo.generators` builds what these describe."""

from __future__ import annotations

import attrs
from attrs import validators as v

from zoo.parts import Ref


@attrs.frozen(kw_only=True)
class Sampling:
    """How codes are drawn unless the caller says otherwise."""

    temperature: float = attrs.field(default=1.0, validator=v.ge(0))
    """Divides the logits; 0 takes the likeliest code."""
    top_k: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Keep the k likeliest codes."""
    top_p: float | None = attrs.field(default=None, validator=v.optional(v.and_(v.gt(0), v.le(1))))
    """Keep the likeliest codes whose probabilities reach p."""
    guidance: float = attrs.field(default=1.0, validator=v.ge(0))
    """Classifier-free guidance: null + guidance * (conditional - null), on logits."""


@attrs.frozen(kw_only=True)
class Autoregressive:
    """A prior over the codes of a codebook, asked by caption or label, with an optional reranker."""

    image_size: int = attrs.field(default=32, validator=v.ge(1))
    """Side of the square pictures, pixels."""
    classes: int | None = None
    """Number of labels, for a prior that reads them; None: what the data has."""
    tokenizer: Ref | None = None
    """None for a prior that reads no text."""
    codebook: Ref
    prior: Ref
    reranker: Ref | None = None
    """Orders candidates by how well they fit the caption."""
    sampling: Sampling = Sampling()
    data: str = "shapes"
    """What it is trained on unless `--data` says otherwise."""

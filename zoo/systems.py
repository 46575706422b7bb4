"""Configs of whole systems. Imports no torch; `zoo.generators` builds what these describe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
from attrs import validators as v

from zoo.diffusion.config import Diffusing
from zoo.parts import Place, Ref

STAGES = ("base", "sr32", "sr64", "sr128", "sr256", "sr512", "sr1024")
"""Denoisers of a cascade, in order: those that enlarge go by the side of the pictures they make."""


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


_USUAL = Diffusing()


def _enlarger() -> Any:
    return attrs.field(default=None, metadata={"interface": "denoiser"})


@attrs.frozen(kw_only=True)
class StageSampling:
    """How each stage of a cascade is sampled unless the caller says otherwise."""

    base: Diffusing = _USUAL
    sr32: Diffusing = _USUAL
    sr64: Diffusing = _USUAL
    sr128: Diffusing = _USUAL
    sr256: Diffusing = _USUAL
    sr512: Diffusing = _USUAL
    sr1024: Diffusing = _USUAL


@attrs.frozen(kw_only=True)
class Cascade:
    """Denoisers one after the other, each enlarging the pictures of the one below, asked by caption or label.

    Any denoiser can be a stage. The parts around it decide its size, its channels and what it is conditioned on.
    """

    image_size: int = attrs.field(default=64, validator=v.ge(1))
    """Side of the square pictures that the last stage makes, pixels."""
    base_size: int = attrs.field(default=64, validator=v.ge(1))
    """Side of the pictures that the first stage makes, pixels."""
    classes: int | None = None
    """Number of labels, for denoisers that read them; None: what the data has."""
    tokenizer: Ref | None = None
    """None for a cascade that reads no text."""
    text_encoder: Ref | None = None
    """Makes embeddings of captions."""
    train_text: bool = False
    """Whether the text encoder is trained with the first stage; False: its weights are taken as they are."""
    latent: Ref = Ref("pixels", "latent")
    """Where the denoisers work."""
    base: Ref
    """The first stage."""
    sr32: Ref | None = _enlarger()
    sr64: Ref | None = _enlarger()
    sr128: Ref | None = _enlarger()
    sr256: Ref | None = _enlarger()
    sr512: Ref | None = _enlarger()
    sr1024: Ref | None = _enlarger()
    reranker: Ref | None = None
    """Orders candidates by how well they fit the caption."""
    sampling: StageSampling = StageSampling()
    data: str = "shapes"
    """What it is trained on unless `--data` says otherwise."""

    @staticmethod
    def places(values: Mapping[str, Any]) -> dict[str, Place]:
        """Return where each stage stands, in order, of a mapping that holds the stages there are and `base_size`."""
        found: dict[str, Place] = {}
        below = None
        for role in STAGES:
            if values.get(role) is not None:
                side = values["base_size"] if role == "base" else int(role.removeprefix("sr"))
                found[role], below = Place(side, below), side
        return found

    def together(self) -> dict[str, tuple[str, ...]]:
        """Return the parts without a stage of their own that a stage trains, by its name."""
        reads = getattr(self.base.config, "reads", "nothing")
        learns = self.train_text and self.text_encoder is not None and reads == "text"
        return {"base": ("text_encoder",)} if learns else {}

    @image_size.validator
    def _stages_chain(self, attribute: Any, value: int) -> None:
        last = "base"
        for role, place in self.places(attrs.asdict(self, recurse=False)).items():
            if place.low is not None and place.low >= place.image_size:
                raise ValueError(
                    f"'{role}' makes pictures of {place.image_size} px from those of {last}, which have {place.low}: "
                    "each stage must enlarge; set a smaller base_size, or the stage to none"
                )
            last, side = role, place.image_size
        if side != value:
            raise ValueError(
                f"'image_size' is {value}, and the last stage, {last}, makes {side} px; set image_size={side}"
            )

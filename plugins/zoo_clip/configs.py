"""Sizes of CLIP.

[1] A. Radford et al.: Learning Transferable Visual Models From Natural Language Supervision. arXiv:2103.00020
[2] github.com/openai/CLIP, clip/model.py and clip/clip.py
"""

from __future__ import annotations

import math
from typing import Any, Literal

import attrs
from attrs import validators as v

from zoo.cost import Cost
from zoo.parts import Facts, Recipe, Ref
from zoo_clip import cost

Triple = tuple[float, float, float]


def _divides(other: str) -> Any:
    """Return a validator: field `other`, where both are set, divides this one."""

    def check(config: Any, attribute: attrs.Attribute[Any], value: int | None) -> None:
        by = getattr(config, other)
        if value is not None and value % by:
            raise ValueError(f"{attribute.name}: {value} is not a multiple of {other}, {by}")

    return check


_positive = v.ge(1)


@attrs.frozen(kw_only=True)
class Clip:
    """A vision transformer and a text transformer with one embedding space."""

    patch: int = attrs.field(default=4, validator=_positive)
    """Side of a patch, pixels."""
    image_size: int | None = attrs.field(default=None, validator=v.optional(v.and_(_positive, _divides("patch"))))
    """Side of the square picture the vision tower sees, pixels; other pictures are resized. None: the system's."""
    vision_heads: int = attrs.field(default=2, validator=_positive)
    """Attention heads of the vision tower."""
    vision_width: int = attrs.field(default=128, validator=v.and_(_positive, _divides("vision_heads")))
    """Width of the vision tower."""
    vision_layers: int = attrs.field(default=4, validator=_positive)
    """Blocks of the vision tower."""
    text_heads: int = attrs.field(default=2, validator=_positive)
    """Attention heads of the text tower."""
    text_width: int = attrs.field(default=128, validator=v.and_(_positive, _divides("text_heads")))
    """Width of the text tower."""
    text_layers: int = attrs.field(default=2, validator=_positive)
    """Blocks of the text tower."""
    text_vocab: int | None = attrs.field(default=None, validator=v.optional(_positive))
    """Pieces of the tokenizer. None: the tokenizer's."""
    text_length: int | None = attrs.field(default=None, validator=v.optional(_positive))
    """Tokens of a caption. None: the tokenizer's."""
    embed_dim: int = attrs.field(default=128, validator=_positive)
    """Width of the space pictures and captions meet in."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """"quick_gelu" is x sigmoid(1.702 x) [2]; open re-trainings use "gelu"."""
    logit_scale_init: float = math.log(1 / 0.07)
    """Logarithm of the inverse temperature at the start ([1] section 2.5: temperature 0.07)."""
    logit_scale_max: float = math.log(100)
    """Its ceiling ([1] section 2.5: logits are scaled by no more than 100)."""
    mean: Triple = (0.48145466, 0.4578275, 0.40821073)
    """Mean of the pixels' channels that is subtracted [2]."""
    std: Triple = attrs.field(default=(0.26862954, 0.26130258, 0.27577711), validator=v.deep_iterable(v.gt(0)))
    """Deviation of the pixels' channels that is divided by [2]."""
    tokenizer: Ref = attrs.field(default=Ref("bpe-shapes", "tokenizer"))
    """What turns captions into ids."""
    train: Recipe = attrs.field(factory=Recipe)
    """How both towers are trained."""

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no other part is shaped by a reranker."""
        return Facts()

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs (see `zoo.cost`) in a global batch of so many pairs."""
        return cost.cost(self, batch)


def clip() -> Clip:
    """Return the laptop variant, for `shapes` at 32 px."""
    return Clip(
        patch=8,
        image_size=32,
        vision_width=96,
        vision_layers=3,
        vision_heads=3,
        text_width=96,
        text_layers=2,
        text_heads=3,
        text_vocab=1024,
        text_length=20,
        embed_dim=96,
        train=Recipe(lr=2e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.1, warmup=40, batch=256, steps=300),
    )


def clip_vit_b32() -> Clip:
    """Return ViT-B/32 ([1] tables 18 to 20): 151 277 313 parameters."""
    return Clip(
        patch=32,
        image_size=224,
        vision_width=768,
        vision_layers=12,
        vision_heads=12,
        text_width=512,
        text_layers=12,
        text_heads=8,
        text_vocab=49408,
        text_length=77,
        embed_dim=512,
        tokenizer=Ref("bpe-clip", "tokenizer"),
        train=Recipe(
            lr=5e-4,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=0.2,
            warmup=2000,
            clip=None,
            batch=32768,
            steps=390_625,  # 32 epochs of 400 million pairs
        ),
    )


def clip_tiny() -> Clip:
    """Return the smallest one, for tests."""
    return Clip(
        patch=8,
        image_size=32,
        vision_width=32,
        vision_layers=2,
        text_width=32,
        text_layers=2,
        text_vocab=384,
        text_length=32,
        embed_dim=24,
        tokenizer=Ref("bpe-tiny", "tokenizer"),
        train=Recipe(lr=1e-3, weight_decay=0.1, batch=16, steps=20),
    )

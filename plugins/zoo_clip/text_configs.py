"""Sizes of CLIP's text tower as a text encoder. Imports no torch.

[1] A. Radford et al.: Learning Transferable Visual Models From Natural Language Supervision. arXiv:2103.00020
[2] C. Saharia et al.: Photorealistic Text-to-Image Diffusion Models. arXiv:2205.11487
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import validators as v

from zoo.cost import Cost
from zoo.parts import Facts, Recipe
from zoo_clip import text_cost

_positive: Any = v.ge(1)


@attrs.frozen(kw_only=True)
class ClipText:
    """CLIP's text tower up to its last layer but one, whose states are the embeddings, as [2] takes them."""

    width: int = attrs.field(default=512, validator=_positive)
    """Width of the tower and of the embeddings."""
    layers: int = attrs.field(default=12, validator=v.ge(2))
    """Layers of CLIP's tower [1]; the last is not built."""
    heads: int = attrs.field(default=8, validator=_positive)
    """Attention heads; must divide `width`."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """"quick_gelu" is x sigmoid(1.702 x); open re-trainings use "gelu"."""
    token_std: float = attrs.field(default=0.02, validator=v.gt(0))
    """Standard deviation of token embeddings at the start: that of the released code."""
    position_std: float = attrs.field(default=0.01, validator=v.gt(0))
    """Standard deviation of positions at the start: that of the released code."""
    text_vocab: int | None = attrs.field(default=None, validator=v.optional(_positive))
    """Pieces of the tokenizer. None: the tokenizer's."""
    text_length: int | None = attrs.field(default=None, validator=v.optional(_positive))
    """Tokens of a caption, which have learnt positions. None: the tokenizer's."""
    train: Recipe = attrs.field(factory=Recipe)
    """Unused where the encoder is trained inside another part's stage, which is the only way it is."""

    @heads.validator
    def _divide_width(self, attribute: Any, value: int) -> None:
        if self.width % value:
            raise ValueError(f"width: {self.width} is not a multiple of heads, {value}")

    def facts(self, image_size: int) -> Facts:
        """Return the width of the embeddings."""
        return Facts(width=self.width)

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs (see `zoo.cost`), a sample being one caption of full length."""
        return text_cost.cost(self)


def clip_vit_b32_text() -> ClipText:
    """Return the text tower of ViT-B/32 ([1] table 20): 8 heads, 512 wide."""
    return ClipText(text_vocab=49408, text_length=77)


def clip_vit_l14_text() -> ClipText:
    """Return the text tower of ViT-L/14 ([1] table 20), which the paper's comparison [2] is nearest to: 768 wide."""
    return ClipText(width=768, heads=12, text_vocab=49408, text_length=77)


def clip_text() -> ClipText:
    """Return the laptop's, for captions of `shapes`, learnt beside a small denoiser.

    Its embeddings begin 25 and 50 times as large as CLIP's: small ones move too far in each of a few thousand updates.
    """
    return ClipText(width=96, layers=4, heads=4, token_std=0.5, position_std=0.5, text_vocab=1024, text_length=20)


def clip_text_tiny() -> ClipText:
    """Return the smallest one, for tests."""
    return ClipText(width=24, layers=3, heads=2, text_vocab=384, text_length=32)

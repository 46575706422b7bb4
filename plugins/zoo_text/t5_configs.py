"""Sizes of T5's encoder. Imports no torch.

[1] C. Raffel et al.: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer.
    arXiv:1910.10683
[2] github.com/google-research/text-to-text-transfer-transformer, released_checkpoints.md: version 1.1
[3] transformers, models/t5/configuration_t5.py, and the config.json of the published weights
[4] C. Saharia et al.: Photorealistic Text-to-Image Diffusion Models. arXiv:2205.11487
[5] github.com/NVIDIA/NeMo, examples/multimodal/text_to_image/imagen/conf/base64-2b.yaml
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import validators as v

from zoo.cost import Cost
from zoo.parts import Facts, Recipe
from zoo_text import t5_cost

_positive: Any = v.ge(1)
PIECES, TOKENS = 32_100, 128
"""Pieces of the published vocabulary; tokens of a caption, which Imagen's paper [4] leaves open: NeMo's number [5]."""


@attrs.frozen(kw_only=True)
class T5:
    """The encoder half of T5: every token of a caption attends to all others."""

    width: int = attrs.field(default=512, validator=_positive)
    """Width of the residual stream and of the embeddings given out, d_model [3]."""
    depth: int = attrs.field(default=8, validator=_positive)
    """Layers, each one attention and one MLP branch."""
    heads: int = attrs.field(default=6, validator=_positive)
    """Attention heads."""
    head_width: int = attrs.field(default=64, validator=_positive)
    """Width of one head, d_kv [3]; heads * head_width need not be `width`."""
    hidden: int = attrs.field(default=1024, validator=_positive)
    """Width of the MLP's hidden layer, d_ff [3]."""
    activation: Literal["gated-gelu", "relu"] = "gated-gelu"
    """"relu" in the first version [1]; in version 1.1 [2] one half of a layer twice as wide, through a GELU (its tanh
    approximation), multiplies the other."""
    buckets: int = attrs.field(default=32, validator=v.ge(4))
    """Relative positions that are told apart, half of them to either side [1] section 2.1."""
    max_distance: int = attrs.field(default=128, validator=v.ge(2))
    """From this distance on, in tokens, all share the last bucket [1] section 2.1."""
    round_to: int = attrs.field(default=1, validator=_positive)
    """The table of pieces has a multiple of so many rows: 128 in published weights, 32 128 rows for 32 100 pieces."""
    text_vocab: int | None = attrs.field(default=None, validator=v.optional(_positive))
    """Pieces of the tokenizer. None: the tokenizer's."""
    text_length: int | None = attrs.field(default=None, validator=v.optional(_positive))
    """Tokens of a caption, by which costs are counted; the encoder itself reads any number. None: the tokenizer's."""
    train: Recipe = attrs.field(factory=lambda: Recipe(lr=1e-3, warmup=100))
    """Unused where the encoder is trained inside another part's stage, which is the only way it is."""

    @buckets.validator
    def _halves_twice(self, attribute: Any, value: int) -> None:
        if value % 4:
            raise ValueError(f"buckets: {value} is not a multiple of 4: two sides, and half of each by single steps")

    @max_distance.validator
    def _passes_single_steps(self, attribute: Any, value: int) -> None:
        if value <= self.buckets // 4:
            raise ValueError(f"max_distance: {value} is within the {self.buckets // 4} single steps of buckets")

    @property
    def rows(self) -> int:
        """Rows of the table of pieces."""
        return -(-(self.text_vocab or 0) // self.round_to) * self.round_to

    def facts(self, image_size: int) -> Facts:
        """Return the width of the embeddings."""
        return Facts(width=self.width)

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs (see `zoo.cost`), a sample being one caption of full length."""
        return t5_cost.cost(self)


def _published(width: int, depth: int, heads: int, hidden: int, head_width: int = 64, **more: Any) -> T5:
    sizes: dict[str, Any] = {"width": width, "depth": depth, "heads": heads, "hidden": hidden, **more}
    return T5(**sizes, head_width=head_width, round_to=128, text_vocab=PIECES, text_length=TOKENS)


def t5_v1_1_small() -> T5:
    """Return T5 v1.1 small [2]: 35 332 800 parameters of the encoder."""
    return _published(512, 8, 6, 1024)


def t5_v1_1_base() -> T5:
    """Return T5 v1.1 base [2]."""
    return _published(768, 12, 12, 2048)


def t5_v1_1_large() -> T5:
    """Return T5 v1.1 large [2]."""
    return _published(1024, 24, 16, 2816)


def t5_v1_1_xl() -> T5:
    """Return T5 v1.1 XL [2]."""
    return _published(2048, 24, 32, 5120)


def t5_v1_1_xxl() -> T5:
    """Return T5 v1.1 XXL [2], Imagen's text encoder [4]: 4 630 714 368 parameters beside the table of pieces."""
    return _published(4096, 24, 64, 10240)


def t5_v1_0_small() -> T5:
    """Return the first version's small one [1]."""
    return _published(512, 6, 8, 2048, activation="relu")


def t5_v1_0_base() -> T5:
    """Return the first version's base [1]."""
    return _published(768, 12, 12, 3072, activation="relu")


def t5_v1_0_large() -> T5:
    """Return the first version's large [1]."""
    return _published(1024, 24, 16, 4096, activation="relu")


def t5_v1_0_3b() -> T5:
    """Return the first version's 3B [1], named after encoder and decoder together."""
    return _published(1024, 24, 32, 16384, head_width=128, activation="relu")


def t5_v1_0_11b() -> T5:
    """Return the first version's 11B [1], named after encoder and decoder together."""
    return _published(1024, 24, 128, 65536, head_width=128, activation="relu")


def t5() -> T5:
    """Return the laptop's, in the form of version 1.1, for captions of `shapes`, learnt beside a small denoiser."""
    return T5(width=96, depth=3, heads=4, head_width=24, hidden=128, text_vocab=1024, text_length=20)


def t5_tiny() -> T5:
    """Return the smallest one, for tests."""
    return T5(width=24, depth=2, heads=2, head_width=8, hidden=40, text_vocab=384, text_length=32)

"""Configurations of Imagen's two denoisers. Imports no torch; the named sizes are in `variants.py`.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
[2] P. Dhariwal, A. Nichol: Diffusion models beat GANs on image synthesis. arXiv:2105.05233
[3] github.com/deep-floyd/IF, deepfloyd_if/model/unet.py
[4] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598
[5] A. Nichol, P. Dhariwal: Improved denoising diffusion probabilistic models. arXiv:2102.09672
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import validators as v

from zoo.cost import Cost
from zoo.diffusion.config import Schedule
from zoo.parts import Facts, Grid, Recipe
from zoo_imagen import cost

Reads = Literal["text", "label", "nothing"]
Mixing = Literal["none", "self", "cross"]
Weighting = Literal["eps", "v", "x0", "min-snr"]

TEXT_GROUPS = 32
"""Groups of a group norm over text [3]."""

_count: Any = v.ge(1)
_counts: Any = v.and_(v.min_len(1), v.deep_iterable(v.ge(1)))
_count_or_none: Any = v.optional(v.ge(1))


@attrs.frozen(kw_only=True)
class UNet:
    """The base model's U-Net: that of [2], whose attention also reads the caption [1] section 2.4; DeepFloyd's [3]."""

    width: int = attrs.field(default=512, validator=_count)
    """Channels of the finest level [1] appendix F."""
    mults: tuple[int, ...] = attrs.field(default=(1, 2, 3, 4), validator=_counts)
    """Channels of each level over `width`, fine to coarse; every level halves the sides [1] appendix F."""
    blocks: int = attrs.field(default=3, validator=_count)
    """Residual blocks a level on the way down; one more on the way up [1] appendix F."""
    attention: tuple[int, ...] = attrs.field(default=(2, 4, 8))
    """Reductions of the sides at which every block is followed by attention: 2, 4, 8 of 64 px are the resolutions 32,
    16, 8 of [1] appendix F. The middle of the network has attention in any case."""
    head_width: int = attrs.field(default=64, validator=_count)
    """Channels of an attention head; must divide the width of every level with attention [1] appendix F."""
    groups: int = attrs.field(default=32, validator=_count)
    """Groups of every group norm; must divide every width [2]."""
    activation: Literal["silu", "gelu"] = "silu"
    """"silu" [2], "gelu" [3]."""
    sum_scale: float = attrs.field(default=1.0, validator=v.gt(0))
    """Factor of the sum that a residual block returns: 1, or 0.7071 in networks of [3] with `scale_skip_connection`."""
    text_channels: int | None = attrs.field(default=None, validator=_count_or_none)
    """Width to which captions are projected before attention reads them; None: as they come. [1] does not say; 4 times
    the width in [3]."""
    text_norm: Literal["layer", "group"] = attrs.field(default="layer")
    """Norm of the text in every attention: per token [1], or group norm over all tokens [3]."""
    pool_heads: int = attrs.field(default=8, validator=_count)
    """Heads of the attention that pools the text; must divide its width. [1] does not say; 64 in [3]."""

    reads: Reads = "text"
    """What it is conditioned on."""
    cond_drop: float = attrs.field(default=0.1, validator=v.and_(v.ge(0), v.lt(1)))
    """Share of training samples that see zeros instead of their caption, which guidance needs [1] section 2.2, [4]."""
    prediction: Literal["eps", "v", "x0"] = "eps"
    """What it predicts [1] appendix A."""
    variance: Literal["fixed", "learned"] = "fixed"
    """"learned" doubles the output channels; the second half places the variance between its bounds [5], [3]."""
    schedule: Schedule = attrs.field(factory=Schedule)
    """Noise it is trained with: cosine [1] appendix F."""
    weighting: Weighting = "eps"
    """Weight of a noise level in the loss, see `zoo.diffusion.losses`; "eps" counts errors of the noise evenly [1]."""
    train: Recipe = attrs.field(factory=Recipe)
    """How it is trained."""

    channels: int | None = attrs.field(default=None, validator=_count_or_none)
    """Channels of z; None: the latent's."""
    size: Grid | None = None
    """Height and width of z; None: the latent's."""
    bounded: bool | None = None
    """True when z lies in [-1, 1], so that thresholding makes sense; None: what the latent says."""
    text_width: int | None = attrs.field(default=None, validator=_count_or_none)
    """Width of the text embedding; None: the text encoder's."""
    text_length: int | None = attrs.field(default=None, validator=_count_or_none)
    """Tokens of a caption; None: the tokenizer's. Nothing is built on it."""
    classes: int | None = attrs.field(default=None, validator=_count_or_none)
    """Number of labels, with reads = "label"; None: the system's."""
    low: int | None = attrs.field(default=None, validator=_count_or_none)
    """Side of the picture of the stage below, which the network then reads enlarged, beside z; None: there is none."""

    @attention.validator
    def _reached(self, attribute: Any, value: tuple[int, ...]) -> None:
        reached = [2**i for i in range(len(self.mults))]
        if not set(value) <= set(reached):
            raise ValueError(
                f"'attention' must be among the reductions of {len(self.mults)} levels, {reached}: {value}"
            )

    @groups.validator
    def _divides(self, attribute: Any, value: int) -> None:
        if self.width % value:
            raise ValueError(f"'groups' must divide width ({self.width}): {value}")

    @head_width.validator
    def _divides_levels(self, attribute: Any, value: int) -> None:
        _divides_widths("head_width", value, [*self._attending(), self.widths[-1]])

    @text_norm.validator
    def _has_groups(self, attribute: Any, value: str) -> None:
        _takes_groups(value, self.text_channels or self.text_width)

    @pool_heads.validator
    def _divides_text(self, attribute: Any, value: int) -> None:
        _divides_text_width(self.text_width, value)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, fine to coarse."""
        return tuple(self.width * mult for mult in self.mults)

    @property
    def time_width(self) -> int:
        """Width of the embedding of time and caption [3]; 4 times the width in [1] and [2], the same at [1]'s mults."""
        return max(self.widths)

    @property
    def factor(self) -> int:
        """What the sides of z are divided by at the coarsest level."""
        return 2 ** (len(self.mults) - 1)

    def _attending(self) -> list[int]:
        return [width for i, width in enumerate(self.widths) if 2**i in self.attention]

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no part depends on a denoiser."""
        return Facts()

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.unet(self)


@attrs.frozen(kw_only=True)
class EfficientUNet:
    """The U-Net of super-resolution: most of it works at low resolution, sides are halved first [1] section B.1."""

    widths: tuple[int, ...] = attrs.field(default=(128, 256, 512, 1024), validator=_counts)
    """Channels of each level, fine to coarse; each of them halves the sides before anything else [1] appendix F."""
    blocks: tuple[int, ...] = attrs.field(default=(2, 4, 8, 8), validator=_counts)
    """Residual blocks of each level, on the way down and again on the way up [1] appendix F."""
    attention: tuple[Mixing, ...] = attrs.field(default=("none", "none", "none", "self"))
    """What follows the blocks of each level: nothing; self-attention whose keys include the caption's; or attention to
    the caption alone [1] section 2.4, appendix F."""
    heads: int = attrs.field(default=8, validator=_count)
    """Attention heads, of twice the level's channels together [1] section B.1; must divide that."""
    groups: int = attrs.field(default=32, validator=_count)
    """Groups of every group norm; must divide every width."""
    activation: Literal["silu", "gelu"] = "silu"
    """Swish [1] section B.1."""
    text_channels: int | None = attrs.field(default=None, validator=_count_or_none)
    """Width to which captions are projected before attention reads them; None: as they come."""
    text_norm: Literal["layer", "group"] = attrs.field(default="layer")
    """Norm of the text in every attention: per token [1], or group norm over all tokens [3]."""
    pool_heads: int = attrs.field(default=8, validator=_count)
    """Heads of the attention that pools the text; must divide its width. [1] does not say."""

    reads: Reads = "text"
    """What it is conditioned on, beside `low`."""
    cond_drop: float = attrs.field(default=0.1, validator=v.and_(v.ge(0), v.lt(1)))
    """Share of training samples that see zeros instead of their caption, which guidance needs [1] section 2.2, [4]."""
    prediction: Literal["eps", "v", "x0"] = "eps"
    """What it predicts [1] appendix A."""
    variance: Literal["fixed", "learned"] = "fixed"
    """"learned" doubles the output channels; the second half places the variance between its bounds [5]."""
    schedule: Schedule = attrs.field(factory=Schedule)
    """Noise it is trained with [1] appendix F."""
    weighting: Weighting = "eps"
    """Weight of a noise level in the loss, see `zoo.diffusion.losses`; "eps" counts errors of the noise evenly [1]."""
    train: Recipe = attrs.field(factory=Recipe)
    """How it is trained."""
    crop: int | None = attrs.field(default=None, validator=_count_or_none)
    """Side of the squares of z that it is trained on, cut at random; None: whole. [1] appendix F trains 1024 px so."""

    channels: int | None = attrs.field(default=None, validator=_count_or_none)
    """Channels of z; None: the latent's."""
    size: Grid | None = None
    """Height and width of z; None: the latent's. The network takes any whose sides its levels divide."""
    bounded: bool | None = None
    """True when z lies in [-1, 1], so that thresholding makes sense; None: what the latent says."""
    text_width: int | None = attrs.field(default=None, validator=_count_or_none)
    """Width of the text embedding; None: the text encoder's."""
    text_length: int | None = attrs.field(default=None, validator=_count_or_none)
    """Tokens of a caption; None: the tokenizer's. Nothing is built on it."""
    classes: int | None = attrs.field(default=None, validator=_count_or_none)
    """Number of labels, with reads = "label"; None: the system's."""
    low: int | None = attrs.field(default=None, validator=_count_or_none)
    """Side of the picture of the stage below, which the network then reads enlarged, beside z; None: there is none."""

    @blocks.validator
    @attention.validator
    def _one_a_level(self, attribute: Any, value: tuple[Any, ...]) -> None:
        if len(value) != len(self.widths):
            raise ValueError(f"'{attribute.name}' needs one entry a level, {len(self.widths)}: {value}")

    @attention.validator
    def _has_text(self, attribute: Any, value: tuple[str, ...]) -> None:
        if "cross" in value and self.reads != "text":
            raise ValueError(f"'attention' = 'cross' reads a caption, and reads = '{self.reads}' has none")

    @groups.validator
    def _divides(self, attribute: Any, value: int) -> None:
        if any(width % value for width in self.widths):
            raise ValueError(f"'groups' must divide widths {self.widths}: {value}")

    @heads.validator
    def _divides_levels(self, attribute: Any, value: int) -> None:
        inner = [2 * w for w, kind in zip(self.widths, self.attention, strict=False) if kind != "none"]
        _divides_widths("heads", value, inner)

    @text_norm.validator
    def _has_groups(self, attribute: Any, value: str) -> None:
        _takes_groups(value, self.text_channels or self.text_width)

    @pool_heads.validator
    def _divides_text(self, attribute: Any, value: int) -> None:
        _divides_text_width(self.text_width, value)

    @property
    def width(self) -> int:
        """Channels of the finest level."""
        return self.widths[0]

    @property
    def time_width(self) -> int:
        """Width of the embedding of time, level and caption: four times the finest level's, as in [2]."""
        return 4 * self.width

    @property
    def factor(self) -> int:
        """What the sides of z are divided by at the coarsest level."""
        return 2 ** len(self.widths)

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no part depends on a denoiser."""
        return Facts()

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.efficient_unet(self)


def _divides_widths(name: str, value: int, widths: list[int]) -> None:
    if any(width % value for width in widths):
        raise ValueError(f"'{name}' must divide the widths of attention, {widths}: {value}")


def _divides_text_width(width: int | None, heads: int) -> None:
    if width is not None and width % heads:
        raise ValueError(f"'pool_heads' must divide the text encoder's width ({width}): {heads}")


def _takes_groups(norm: str, width: int | None) -> None:
    if norm == "group" and width is not None and width % TEXT_GROUPS:
        raise ValueError(f"'text_norm' = 'group' needs text of a multiple of {TEXT_GROUPS} channels, not {width}")

"""Configurations of DiffuSSM and of DiT. Imports no torch; the named sizes are in `variants.py`.

Letters: D width, M shortening, P patch, L positions of a picture, J = L / M places of the residual stream.

[1] J. Yan, J. Gu, A. Rush: Diffusion models without attention. arXiv:2311.18257
[2] W. Peebles, S. Xie: Scalable diffusion models with transformers. arXiv:2212.09748
[3] A. Gu, A. Gupta, K. Goel, C. Ré: On the parameterization and initialization of diagonal state space models.
    arXiv:2206.11893
[4] F. Bao et al.: All are worth words: a ViT backbone for diffusion models. arXiv:2209.12152
[5] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import validators as v

from zoo.cost import Cost
from zoo.diffusion.config import Schedule
from zoo.parts import Facts, Grid, Recipe
from zoo_diffussm import cost

Reads = Literal["text", "label", "nothing"]
Weighting = Literal["eps", "v", "x0", "min-snr"]

_count: Any = v.ge(1)
_count_or_none: Any = v.optional(v.ge(1))


def _positions(size: Grid, patch: int, shortening: int) -> None:
    """Refuse sides that make no whole patches or places."""
    h, w = size
    if h % patch or w % patch:
        raise ValueError(f"'patch' must divide the latent's sides {h}x{w}: {patch}")
    if (h * w // patch**2) % shortening:
        raise ValueError(f"'shortening' must divide the {h * w // patch**2} positions of {h}x{w} cells: {shortening}")


@attrs.frozen(kw_only=True)
class DiffuSsm:
    """A stack of gated bidirectional SSM blocks with hourglass layers [1]."""

    width: int = attrs.field(default=1152, validator=_count)
    """D [1] section 5 (XL)."""
    depth: int = attrs.field(default=29, validator=_count)
    """Blocks [1] section 5 (XL)."""
    shortening: int = attrs.field(default=2, validator=_count)
    """M, positions that share one place of the residual stream: dense layers work on L / M places, the SSM on all L
    positions [1] section 4.2. 1 is the uncompressed block. It must divide `width` twice over."""
    patch: int = attrs.field(default=1, validator=_count)
    """Side of the squares of the latent that are one position; 1: none, which is the paper's point [1]."""
    state: int = attrs.field(default=64, validator=v.and_(v.ge(2), lambda *x: _even(*x)))
    """N, size of each channel's state, both halves of its conjugate pairs counted [3]."""
    init: Literal["lin", "inv", "legs"] = "lin"
    """How the SSM's eigenvalues begin [3]."""
    discretisation: Literal["zoh", "bilinear"] = "zoh"
    """From continuous to discrete time [3]."""
    directions: Literal["both", "forward"] = "both"
    """"both": one SSM reads the positions forward and one backward [1]; "forward": both read forward, for the paper's
    ablation at equal size."""
    skips: Literal["none", "long"] = "none"
    """"long": the second half of the blocks also reads what the first half made, as U-ViT does [4]."""
    positions: Literal["none", "sincos"] = attrs.field(default="none")
    """"sincos": DiT's fixed embedding of each place is added to the input [2]. The SSM knows the order without."""
    prefix: bool = False
    """Whether the caption's tokens, or the label, also stand in front of the picture, beside the vector that modulates
    every block: what [2] calls in-context conditioning."""

    reads: Reads = "label"
    """What it is conditioned on."""
    cond_drop: float = attrs.field(default=0.1, validator=v.and_(v.ge(0), v.lt(1)))
    """Share of training samples that see the null condition, which guidance needs [5] [2]."""
    prediction: Literal["eps", "v", "x0"] = "eps"
    """What it predicts [2]."""
    variance: Literal["fixed", "learned"] = "learned"
    """"learned" doubles the output channels; the second half places the variance between its bounds [1] [2]."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(kind="linear-1000"))
    """Noise it is trained with [2]."""
    weighting: Weighting = "eps"
    """Weight of a noise level in the loss, see `zoo.diffusion.losses`; "eps" counts errors of the noise evenly [2]."""
    train: Recipe = attrs.field(factory=Recipe)
    """How it is trained."""

    channels: int | None = attrs.field(default=None, validator=_count_or_none)
    """Channels of z; None: the latent's."""
    size: Grid | None = attrs.field(default=None)
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

    @positions.validator
    def _filled(self, attribute: Any, value: str) -> None:
        _quarters(self.width, value)

    @size.validator
    def _divides(self, attribute: Any, value: Grid | None) -> None:
        if value is not None:
            _positions(value, self.patch, self.shortening)

    @shortening.validator
    def _splits_width(self, attribute: Any, value: int) -> None:
        if 2 * self.width % value:
            raise ValueError(f"'shortening' must divide twice the width ({2 * self.width}): {value}")

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no part depends on a denoiser."""
        return Facts()

    def notes(self) -> dict[str, str]:
        """Return the parameters of a block's matrices, by the equations' shapes and as the paper states them."""
        d2, m = self.width**2, self.shortening
        return {
            "matrices": f"a block has (13 + M) D² = {(13 + m) * d2:,} parameters in its matrices by the shapes of the "
            f"equations, which give the paper's FLOPs; the paper states 9 D² + 2 M D² = {(9 + 2 * m) * d2:,}",
        }

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The kernels are computed once for the whole batch."""
        return cost.diffussm(self, batch)


@attrs.frozen(kw_only=True)
class DiT:
    """A transformer on patches of the latent, whose norms and branches the condition scales [2]."""

    width: int = attrs.field(default=1152, validator=_count)
    """D [2] table 1 (XL)."""
    depth: int = attrs.field(default=28, validator=_count)
    """Blocks [2] table 1 (XL)."""
    heads: int = attrs.field(default=16, validator=_count)
    """Attention heads; must divide `width` [2] table 1 (XL)."""
    patch: int = attrs.field(default=2, validator=_count)
    """P, side of a patch of the latent [2] section 3.2."""
    hidden: int = attrs.field(default=4, validator=_count)
    """Width of the layer between the two of an MLP, in multiples of `width` [2]."""
    positions: Literal["sincos", "none"] = attrs.field(default="sincos")
    """Fixed embedding of each patch's place, added to the input [2] section 3.2."""
    prefix: bool = False
    """Whether the caption's tokens, or the label, also stand in front of the picture, beside the vector that modulates
    every block: "in-context conditioning" [2] section 3.2."""

    reads: Reads = "label"
    """What it is conditioned on."""
    cond_drop: float = attrs.field(default=0.1, validator=v.and_(v.ge(0), v.lt(1)))
    """Share of training samples that see the null condition, which guidance needs [5] [2]."""
    prediction: Literal["eps", "v", "x0"] = "eps"
    """What it predicts [2]."""
    variance: Literal["fixed", "learned"] = "learned"
    """"learned" doubles the output channels; the second half places the variance between its bounds [2]."""
    schedule: Schedule = attrs.field(factory=lambda: Schedule(kind="linear-1000"))
    """Noise it is trained with [2]."""
    weighting: Weighting = "eps"
    """Weight of a noise level in the loss, see `zoo.diffusion.losses`; "eps" counts errors of the noise evenly [2]."""
    train: Recipe = attrs.field(factory=Recipe)
    """How it is trained."""

    channels: int | None = attrs.field(default=None, validator=_count_or_none)
    """Channels of z; None: the latent's."""
    size: Grid | None = attrs.field(default=None)
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

    @positions.validator
    def _filled(self, attribute: Any, value: str) -> None:
        _quarters(self.width, value)

    @size.validator
    def _divides(self, attribute: Any, value: Grid | None) -> None:
        if value is not None:
            _positions(value, self.patch, 1)

    @heads.validator
    def _splits_width(self, attribute: Any, value: int) -> None:
        if self.width % value:
            raise ValueError(f"'heads' must divide width ({self.width}): {value}")

    @property
    def shortening(self) -> int:
        """Every position has a place of its own."""
        return 1

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no part depends on a denoiser."""
        return Facts()

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.dit(self)


def _quarters(width: int, positions: str) -> None:
    """Refuse a width that sines and cosines of two coordinates do not fill."""
    if positions == "sincos" and width % 4:
        raise ValueError(f"'width' must be a multiple of 4 with positions = 'sincos': {width}")


def _even(instance: Any, attribute: Any, value: int) -> None:
    if value % 2:
        raise ValueError(f"'{attribute.name}' must be even, since states come in conjugate pairs: {value}")

"""Configurations of DALL-E's transformer. Imports no torch.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, section 2.2 and appendix B
[2] R. Child et al.: Generating Long Sequences with Sparse Transformers. arXiv:1904.10509
[3] M. Ding et al.: CogView. arXiv:2105.13290, section 2.4
"""

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal

import attrs
from attrs import validators as v

from zoo.cost import Cost
from zoo.errors import PartMismatch
from zoo.parts import Facts, Grid, Recipe
from zoo_dalle import cost

Kind = Literal["row", "column", "conv", "window", "full"]
"""Which earlier codes a layer lets a code see, beside itself:

    row      the w codes before it in raster order, back to the same column of the row above
    column   those above it in its column
    conv     those of a window of `conv_kernel` columns and the rows down to its middle; like the row's, the window
             goes on at the other end of the row before [1] figure 11
    window   the same, but cut off at the picture's edges, as in public code
    full     all
"""


def layer_kinds(depth: int, last: Kind = "conv") -> tuple[Kind, ...]:
    """Return the kind of every layer: row, column, row, row, ... and a convolutional last one [1] appendix B.1.

    The paper counts layers from 1: layer i is a column layer if (i - 2) mod 4 = 0. Every other one is a row layer.
    """
    kinds: list[Kind] = ["column" if (i - 2) % 4 == 0 else "row" for i in range(1, depth)]
    return (*kinds, last)


def reach(kind: Kind, grid: Grid, kernel: int) -> int:
    """Return the largest distance q - k in raster order at which a code is seen, were the grid large enough."""
    (h, w), half = grid, kernel // 2
    return {"row": w, "column": (h - 1) * w, "conv": half * w + half, "window": half * w + half, "full": h * w - 1}[
        kind
    ]


@cache
def seen(kind: Kind, grid: Grid, kernel: int, i: int) -> Sequence[int]:
    """Return the codes that code i sees, in raster order, itself last."""
    w, half = grid[1], kernel // 2
    if kind == "full":
        return range(i + 1)
    if kind == "row":
        return range(max(0, i - w), i + 1)
    if kind == "column":
        return range(i % w, i + 1, w)
    row, column = divmod(i, w)
    codes: set[int] = set()
    for first in range((row - half) * w, i + 1, w):  # of each row that the window covers
        run = range(first + column - half, first + column + half + 1)
        if kind == "window":
            run = range(max(run.start, first), min(run.stop, first + w))
        codes.update(code for code in run if 0 <= code <= i)
    return tuple(sorted(codes))


@attrs.frozen(kw_only=True)
class DallePrior:
    """A decoder-only transformer over T caption tokens and the N codes of one grid."""

    width: int = attrs.field(default=192, validator=v.ge(1))
    """Width of the residual stream, d [1]."""
    depth: int = attrs.field(default=6, validator=v.ge(1))
    """Layers; each is one attention and one MLP branch [1]."""
    heads: int = attrs.field(default=6, validator=v.ge(1))
    """Attention heads; must divide `width`. The paper's heads are 64 wide [1]."""
    mlp_ratio: int = attrs.field(default=4, validator=v.ge(1))
    """Width of the MLP's hidden layer over `width` [1] Table 2."""
    conv_kernel: int = attrs.field(default=11, validator=v.ge(1))
    """Side of the convolutional layer's window, odd [1] figure 11."""
    pattern: Literal["sparse", "sparse-cut", "full"] = "sparse"
    """What kinds the layers are: those of [1], the same with a last window cut off at the edges, or all "full"."""
    block: Literal["pre", "sandwich"] = "pre"
    """Where a branch is normalised: before it, or before and after [3]."""
    gelu: Literal["exact", "tanh"] = "exact"
    """The MLP's activation, or its approximation by a tanh."""
    positions: Literal["row-column", "each"] = "row-column"
    """A code's position is embedded as its row plus its column [1], or has a row of its own."""
    final_norms: int = attrs.field(default=1, validator=v.ge(1))
    """Norms between the last layer and the heads."""
    head_bias: bool = True
    """Whether the two heads have biases."""
    first_token: Literal["learned", "given"] = "learned"
    """The caption's first token is predicted from a learned state, or is always the same and not predicted."""
    reads: Literal["ids", "label", "nothing"] = "ids"
    """What the codes are conditioned on: a caption's token ids [1], a class label, or nothing. The latter two put
    one learned vector where the caption stood."""
    cond_drop: float = attrs.field(default=0.1, validator=v.and_(v.ge(0), v.lt(1)))
    """Share of training samples that see the null condition: a caption of pads only, or the null class. Guidance
    needs it. Not in [1], whose variants have 0."""
    text_weight: float = attrs.field(default=1 / 8, validator=v.and_(v.ge(0), v.lt(1)))
    """Weight of the caption's cross-entropy; the image's has 1 minus this [1]."""

    vocab_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(2)))
    """Number of image codes, K; None: the codebook's."""
    grids: tuple[Grid, ...] | None = attrs.field(default=None)
    """The code grid, (rows, columns), in a tuple of one; None: the codebook's."""
    text_vocab: int | None = attrs.field(default=None, validator=v.optional(v.ge(2)))
    """Number of caption pieces; None: the tokenizer's."""
    text_length: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Caption positions, T; None: the tokenizer's."""
    classes: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Number of class labels; None: the system's. Read only with reads = "label"."""

    train: Recipe = attrs.field(factory=Recipe)
    """How it is trained."""

    @heads.validator
    def _divides(self, attribute: Any, value: int) -> None:
        if self.width % value:
            raise ValueError(f"'heads' must divide width ({self.width}): {value}")

    @conv_kernel.validator
    def _odd(self, attribute: Any, value: int) -> None:
        if value % 2 == 0:
            raise ValueError(f"'conv_kernel' must be odd: {value}")

    @grids.validator
    def _one_grid(self, attribute: Any, value: tuple[Grid, ...] | None) -> None:
        if value is None:
            return
        if len(value) != 1:
            shapes = ", ".join(f"{h}x{w}" for h, w in value) or "none"
            raise PartMismatch(f"DALL-E's attention masks are made for one code grid, and the codebook has {shapes}")
        if min(value[0]) < 1:
            raise ValueError(f"'grids' must have positive sides: {value}")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kind of every layer, first to last."""
        if self.pattern == "full":
            return tuple("full" for _ in range(self.depth))
        return layer_kinds(self.depth, last="window" if self.pattern == "sparse-cut" else "conv")

    @property
    def prefix(self) -> int:
        """Positions before the first code: T with a caption, else 1."""
        return (self.text_length or 0) if self.reads == "ids" else 1

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no part depends on a prior."""
        return Facts()

    def pairs(self, kind: Kind, codes: int) -> int:
        """Return how many pairs of a query and a key a layer's mask keeps, of the prefix and `codes` leading codes."""
        assert self.grids is not None
        among = sum(len(seen(kind, self.grids[0], self.conv_kernel, i)) for i in range(codes))
        return self.prefix * (self.prefix + 1) // 2 + codes * self.prefix + among

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.cost(self)


def dalle_12b_prior() -> DallePrior:
    """Return the paper's 12-billion-parameter transformer with its recipe [1] section 2.3 and appendix B.

    The paper halved the learning rate by hand at each of five plateaus, down to 1/32 of its peak; where those were
    is not published. Here it falls to the same end on a cosine.
    """
    return DallePrior(
        width=3968,
        depth=64,
        heads=62,
        cond_drop=0.0,
        vocab_size=8192,
        grids=((32, 32),),
        text_vocab=16384,
        text_length=256,
        train=Recipe(
            lr=4.5e-4,
            lr_end=4.5e-4 / 32,
            betas=(0.9, 0.96),
            eps=1e-8,
            moments="16-bit",
            weight_decay=4.5e-2,
            warmup=5_000,
            schedule="cosine",
            clip=4.0,
            ema=0.99,
            ema_every=25,
            ema_device="cpu",
            batch=1024,
            steps=430_000,
            transform="dalle-prior",
        ),
    )


def dalle_5_6b_prior() -> DallePrior:
    """Return the paper's transformer of 5.6 billion parameters, 42 heads of 64 [1] table 1.

    Only its width and its rank are given there; its recipe is the large one's.
    """
    return attrs.evolve(dalle_12b_prior(), width=2688, heads=42)


def dalle_2_8b_prior() -> DallePrior:
    """Return the paper's transformer of 2.8 billion parameters, 30 heads of 64 [1] table 1; see `dalle_5_6b_prior`."""
    return attrs.evolve(dalle_12b_prior(), width=1920, heads=30)


def dalle_prior() -> DallePrior:
    """Return the laptop-size transformer: an 8x8 grid, trained in five minutes on two CPU cores."""
    return DallePrior(
        width=128,
        depth=4,
        heads=4,
        vocab_size=96,
        grids=((8, 8),),
        text_vocab=1024,
        text_length=20,
        classes=24,
        train=Recipe(
            lr=3e-3,
            lr_end=3e-5,
            betas=(0.9, 0.96),
            weight_decay=4.5e-2,
            warmup=100,
            clip=1.0,
            ema=0.99,
            batch=64,
            steps=700,
        ),
    )


def dalle_prior_tiny() -> DallePrior:
    """Return a transformer for tests: a 4x4 grid, all three kinds of layer."""
    return attrs.evolve(
        dalle_prior(),
        width=32,
        depth=4,
        heads=2,
        vocab_size=32,
        grids=((4, 4),),
        text_vocab=384,
        text_length=32,
        train=Recipe(lr=3e-3, betas=(0.9, 0.96), weight_decay=4.5e-2, warmup=5, batch=8, steps=60),
    )

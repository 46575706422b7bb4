"""Configurations of ImageGPT's palette and transformer. Imports no torch; the named sizes are in `variants.py`.

[1] M. Chen et al.: Generative Pretraining from Pixels. ICML 2020; V2 of the text, cdn.openai.com
[2] github.com/openai/image-gpt, src/model.py: what was run
[3] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598
"""

from __future__ import annotations

from typing import Any, Literal

import attrs
from attrs import validators as v

from zoo.cost import Cost
from zoo.parts import Facts, Grid, Recipe
from zoo_imagegpt import cost


@attrs.frozen(kw_only=True)
class Palette:
    """A palette of colours found by k-means; every pixel is one code, its nearest colour [1] section 3.2."""

    vocab_size: int = attrs.field(default=512, validator=v.ge(2))
    """Colours, K. An upper bound: pictures of fewer distinct colours leave the rest unused."""
    order: Literal["raster", "snake"] = "raster"
    """How pixels are read: every row from the left [1], or every other row from the right, so that neighbours in the
    sequence are neighbours in the picture."""
    pictures: int = attrs.field(default=4096, validator=v.ge(1))
    """Most pictures the fit reads; of a larger dataset the seed draws as many. Not stated in [1]."""
    pixels: int = attrs.field(default=2**18, validator=v.ge(1))
    """Most pixels the fit clusters, drawn evenly from those pictures. Not stated in [1]."""

    def facts(self, image_size: int) -> Facts:
        """Return the vocabulary, and a grid of one code a pixel."""
        return Facts(vocab_size=self.vocab_size, grids=((image_size, image_size),))

    def cost(self, batch: int = 1) -> Cost:
        """Return nothing: it is fitted, and has no parameters."""
        return Cost()


@attrs.frozen(kw_only=True)
class ImageGptPrior:
    """A transformer over the N codes of a picture, all of which attend to each other."""

    width: int = attrs.field(default=512, validator=v.ge(1))
    """Width of the residual stream, d [1] section 3.3."""
    depth: int = attrs.field(default=24, validator=v.ge(1))
    """Layers, L; each is one attention and one MLP branch [1]."""
    heads: int = attrs.field(default=8, validator=v.ge(1))
    """Attention heads; must divide `width` [2]."""
    mlp_ratio: int = attrs.field(default=4, validator=v.ge(1))
    """Width of the MLP's hidden layer over `width` [2]."""
    objective: Literal["ar", "bert"] = "ar"
    """Predict every code from those before it, or masked codes from all others [1] section 2.1. The second has no
    start vector and cannot sample."""
    mask: float = attrs.field(default=0.15, validator=v.and_(v.gt(0), v.lt(1)))
    """Probability that "bert" masks a code [1] section 4.5: 0.2 is as good, more is worse."""
    reads: Literal["nothing", "label"] = attrs.field(default="nothing")
    """What the start vector depends on: nothing [1], or a class. Only with objective = "ar"."""
    cond_drop: float = attrs.field(default=0.0, validator=v.and_(v.ge(0), v.lt(1)))
    """Share of training samples that see the null class, which guidance needs [3]. Only with reads = "label"."""

    vocab_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(2)))
    """Number of codes, K; None: the codebook's."""
    grids: tuple[Grid, ...] | None = attrs.field(default=None)
    """The code grids, (rows, columns), read one after another; None: the codebook's."""
    classes: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Number of class labels; None: the system's. Read only with reads = "label"."""

    train: Recipe = attrs.field(factory=Recipe)
    """How it is trained."""

    @heads.validator
    def _divides(self, attribute: Any, value: int) -> None:
        if self.width % value:
            raise ValueError(f"'heads' must divide width ({self.width}): {value}")

    @reads.validator
    def _has_a_start(self, attribute: Any, value: str) -> None:
        if value == "label" and self.objective == "bert":
            raise ValueError("'reads' = 'label' is of a start vector, which objective = 'bert' does not have")

    @grids.validator
    def _positive(self, attribute: Any, value: tuple[Grid, ...] | None) -> None:
        if value is not None and (not value or min(min(grid) for grid in value) < 1):
            raise ValueError(f"'grids' must have positive sides: {value}")

    @property
    def length(self) -> int:
        """Codes of a picture, N, once bound."""
        return sum(h * w for h, w in self.grids or ())

    @property
    def starts(self) -> int:
        """Rows of the table of start vectors: one, one a class and the null class, or none."""
        if self.objective == "bert":
            return 0
        return 1 if self.reads == "nothing" else (self.classes or 0) + 1

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no part depends on a prior."""
        return Facts()

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.cost(self)

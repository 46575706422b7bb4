"""What a config is made of: references to other parts, the facts parts tell each other, and training recipes.

Imports no torch. Configs are `@attrs.frozen(kw_only=True)` classes; this module holds the three values that
every one of them may use.
"""

from typing import Any, Literal

import attrs
from attrs import validators as v

_positive_or_none: Any = v.optional(v.gt(0.0))  # Any: attrs' types take the default's type for the field's

SMALLEST_EPS_16_BIT = 1e-9
"""Smallest `Recipe.eps` beside 16-bit moments: a variance that is lost altogether has a root of at most 4e-11, and to
leave it out makes the step at most 4 % longer."""

Grid = tuple[int, int]
"""(rows, columns) of a code grid."""


@attrs.frozen(kw_only=True)
class Facts:
    """What a part tells the parts beside it, before anything is built. Fields are set by need.

    A part's config answers `facts(image_size) -> Facts`; an object given by `parts=` answers the same.
    """

    vocab_size: int | None = None
    """Number of codes of a codebook, or of pieces of a tokenizer."""
    grids: tuple[Grid, ...] | None = None
    """Code grids of one image, coarse to fine."""
    length: int | None = None
    """Tokens in one encoded caption."""
    width: int | None = None
    """Width of a text encoder's output."""
    channels: int | None = None
    """Channels of a latent."""
    size: Grid | None = None
    """Height and width of a latent."""
    bounded: bool | None = None
    """True when the latent's values lie in [-1, 1], so that thresholding makes sense."""


@attrs.frozen
class Ref:
    """A reference to another part, by the name of a card (or a run folder) and the interface it must have.

    Before resolution `config` is None. Resolution fills it with the part's bound config, and from then on the
    reference reads like that config: `system.prior.depth`.
    """

    card: str
    """Name of a card, or the path of a run folder."""
    interface: str
    """The interface the part must have: "tokenizer", "codebook", "prior" ..."""
    config: Any = None
    """The part's bound config, once resolved."""
    given: bool = False
    """True when the part is an object handed over by `parts=`; its config is whatever it answers."""

    def __getattr__(self, name: str) -> Any:
        config = object.__getattribute__(self, "config")
        if name.startswith("__") or config is None:
            raise AttributeError(f"reference to '{self.card}' has no '{name}'")
        return getattr(config, name)


@attrs.frozen(kw_only=True)
class Recipe:
    """How a part is trained. Paper variants carry the paper's recipe; `--set PART.train.lr=...` changes a field."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    """"adamw" decouples weight decay from the gradient; "adam" adds it to the gradient."""
    lr: float = attrs.field(default=3e-4, validator=v.gt(0))
    """Peak learning rate."""
    lr_end: float = attrs.field(default=0.0, validator=v.ge(0))
    """Learning rate at the end of the schedule."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of Adam's first and second moment."""
    eps: float = attrs.field(default=1e-8, validator=v.gt(0))
    """Added to the root of the second moment."""
    moments: Literal["fp32", "16-bit"] = attrs.field(default="fp32")
    """What Adam's moments are kept in. "16-bit": of the matrices in residual blocks, the first as 1-6-9 and the second,
    clipped to 5, as 0-6-10 (sign-exponent-significand); of the rest fp32. Source: arXiv:2102.12092, appendix D."""
    moments_kernel: Literal["plain", "compiled"] = attrs.field(default="plain")
    """How 16-bit moments are updated: by torch's kernels, or by one that torch.compile makes, which takes about as
    long as with fp32 moments instead of several times, and needs a C++ compiler, on a GPU Triton."""
    weight_decay: float = attrs.field(default=0.0, validator=v.ge(0))
    """On matrices only (parameters of two dimensions or more), unless the part says otherwise."""
    warmup: int = attrs.field(default=0, validator=v.ge(0))
    """Updates over which the learning rate rises linearly from zero."""
    schedule: Literal["constant", "cosine"] = "cosine"
    """What follows the warm-up."""
    decay_steps: int | None = None
    """Updates until `lr_end` is reached, warm-up included; None: the run's own number of updates."""
    clip: float | None = attrs.field(default=1.0, validator=_positive_or_none)
    """Largest global gradient norm; None: no clipping."""
    ema: float | None = attrs.field(default=None, validator=v.optional(v.and_(v.ge(0.0), v.lt(1.0))))
    """Decay of the averaged weights that are saved and sampled from; None: no average."""
    ema_every: int = attrs.field(default=1, validator=v.ge(1))
    """Updates between two steps of the average."""
    ema_device: Literal["same", "cpu"] = "same"
    """Where the average is kept: "same" where the weights are, "cpu" in the host's memory, as in arXiv:2102.12092,
    appendix D, to which they are copied every `ema_every` updates."""
    batch: int = attrs.field(default=64, validator=v.ge(1))
    """Samples of the whole (global) batch."""
    accumulate: int = attrs.field(default=1, validator=v.ge(1))
    """Micro-batches the global batch is split into."""
    steps: int = attrs.field(default=1000, validator=v.ge(1))
    """Updates."""
    transform: str = "fit"
    """Which crop law turns a picture into the part's input: see `zoo.data.transforms`."""

    @moments_kernel.validator
    def _has_moments(self, attribute: Any, value: str) -> None:
        if value == "compiled" and self.moments != "16-bit":
            raise ValueError("'moments_kernel' = 'compiled' is of 16-bit moments: set moments=16-bit too")

    @moments.validator
    def _hides_what_16_bits_lose(self, attribute: Any, value: str) -> None:
        if value == "16-bit" and self.eps < SMALLEST_EPS_16_BIT:
            raise ValueError(
                "'moments' = '16-bit' loses variances under 2^-68, which only an 'eps' of "
                f"{SMALLEST_EPS_16_BIT:g} or more hides, got {self.eps:g}; take a larger eps, or moments=fp32"
            )


@attrs.frozen
class Place:
    """Where a denoiser stands in a cascade."""

    image_size: int
    """Side of the pictures it makes, pixels."""
    low: int | None = None
    """Side of the pictures of the stage below, which it enlarges; None: it is the first."""

"""The contracts every part keeps, and the two values that travel between them: `Batch` and `Cond`.

Letters: B batch, H W pixels, h w code grid, N codes per image (the grids' h*w summed), T text tokens,
K codebook size, D width. Pixels are float in [0, 1]; codes are int64. Imports no torch.

Protocols check names only; `zoo.testing` checks shapes and behaviour.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import attrs

from zoo.gradients import Grad, Reduced, Reducer, Shard, Traffic
from zoo.parts import Facts, Grid, Recipe

if TYPE_CHECKING:
    from torch import Tensor

    from zoo.rng import Rng

INTERFACES = (
    "tokenizer",
    "text_encoder",
    "codebook",
    "latent",
    "prior",
    "denoiser",
    "reranker",
    "generator",
)
"""Every kind of part a card can have."""

Losses = Mapping[str, "Tensor"]
"""What a part's loss returns: "loss", a mean over samples, and whatever else is worth a curve (scalars)."""


@attrs.frozen(kw_only=True, eq=False)
class Batch:
    """One global or micro batch; every field is optional and holds B rows."""

    images: Tensor | None = None
    """[B,3,H,W] float in [0, 1]."""
    texts: tuple[str, ...] | None = None
    """Captions."""
    ids: Tensor | None = None
    """[B,T] int64 caption tokens."""
    mask: Tensor | None = None
    """[B,T] bool, True where `ids` holds a token and not padding."""
    labels: Tensor | None = None
    """[B] int64 class."""
    codes: Tensor | None = None
    """[B,N] int64 codes, grids concatenated coarse to fine."""
    z: Tensor | None = None
    """[B,C,h,w] latent."""
    text: Tensor | None = None
    """[B,T,D] text embedding."""
    text_mask: Tensor | None = None
    """[B,T] bool, True where `text` is not padding."""
    tokens: Tensor | None = None
    """[B] float: tokens a sample, over the whole batch of an update that accumulates (the same in every row)."""

    def __len__(self) -> int:
        for name in attrs.fields_dict(type(self)):
            value = getattr(self, name)
            if value is not None:
                return len(value)
        return 0

    def __getitem__(self, rows: slice) -> Batch:
        """Return the micro-batch of these rows."""
        return attrs.evolve(self, **{k: x[rows] for k, x in self.filled().items()})

    def filled(self) -> dict[str, Any]:
        """Return the fields that are set."""
        values = {name: getattr(self, name) for name in attrs.fields_dict(type(self))}
        return {name: x for name, x in values.items() if x is not None}

    def to(self, device: Any) -> Batch:
        """Return the batch with every tensor on `device`."""
        moved = {k: x.to(device) for k, x in self.filled().items() if k != "texts"}
        return attrs.evolve(self, **moved)


@attrs.frozen(kw_only=True, eq=False)
class Cond:
    """What a prior or denoiser is conditioned on; every field is optional and holds B rows."""

    ids: Tensor | None = None
    """[B,T] int64 caption tokens."""
    mask: Tensor | None = None
    """[B,T] bool, True where `ids` holds a token."""
    text: Tensor | None = None
    """[B,T,D] text embedding."""
    text_mask: Tensor | None = None
    """[B,T] bool, True where `text` is not padding."""
    label: Tensor | None = None
    """[B] int64 class."""
    low: Tensor | None = None
    """[B,C,H,W] the lower-resolution picture, resized and noised."""
    low_level: Tensor | None = None
    """[B] log-SNR of `low`."""
    drop: Tensor | None = None
    """[B] bool, True where the part must use its own null condition (it never drops `low`)."""

    def filled(self) -> dict[str, Any]:
        """Return the fields that are set."""
        values = {name: getattr(self, name) for name in attrs.fields_dict(type(self))}
        return {name: x for name, x in values.items() if x is not None}

    def __getitem__(self, rows: Any) -> Cond:
        """Return these rows (a slice or an index tensor)."""
        return attrs.evolve(self, **{k: x[rows] for k, x in self.filled().items()})


@attrs.frozen(eq=False)
class Prediction:
    """A denoiser's answer."""

    mean: Tensor
    """[B,C,H,W] in the denoiser's parameterisation."""
    variance: Tensor | None = None
    """[B,C,H,W] in [-1, 1], or None when the variance is fixed."""


@runtime_checkable
class Tokenizer(Protocol):
    """Captions to ids and back. A tokenizer that is fitted has `fit(dataset, *, seed)`."""

    vocab_size: int
    length: int

    def encode(self, texts: Sequence[str], rng: Rng | None = None) -> tuple[Tensor, Tensor]:
        """Return ids [B,T] int64 and mask [B,T] bool. With `rng`, training noise (BPE dropout) is applied."""

    def decode(self, ids: Tensor) -> list[str]:
        """Return one string a row; padding is dropped."""


@runtime_checkable
class TextEncoder(Protocol):
    """Token ids to embeddings (Imagen's T5)."""

    width: int

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return [B,T,D]; rows of padding are zero."""


@runtime_checkable
class Codebook(Protocol):
    """Pictures to a grid of discrete codes and back."""

    vocab_size: int

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        """Return the code grids of a picture of this size, coarse to fine."""

    def encode(self, images: Tensor) -> Tensor:
        """Return codes [B,N] int64 in [0, K) of images [B,3,H,W]."""

    def decode(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        """Return images [B,3,H,W] in [0, 1] of codes [B,N]."""


@runtime_checkable
class Latent(Protocol):
    """Pictures to continuous latents of about unit variance and back."""

    channels: int
    bounded: bool

    def size(self, height: int, width: int) -> Grid:
        """Return the latent's height and width for a picture of this size."""

    def encode(self, images: Tensor, rng: Rng | None = None) -> Tensor:
        """Return z [B,C,h,w]; with `rng` a sample of the posterior, without it the mean."""

    def decode(self, z: Tensor) -> Tensor:
        """Return images [B,3,H,W] in [0, 1]."""


@runtime_checkable
class Prior(Protocol):
    """A distribution over the codes of a picture."""

    vocab_size: int
    grids: tuple[Grid, ...]
    length: int
    causal: bool

    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return [B,n,K] for codes [B,n], n <= N.

        If `causal`, column i sees codes < i only. If not, -1 marks a masked code and every column sees the
        unmasked ones.
        """

    def sample(
        self,
        cond: Cond,
        *,
        batch: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        rng: Rng,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Return codes [B,N]. `prefix` [B,N] holds given codes and -1 where free (a causal prior takes leading ones).

        Raises:
            CannotSample: the prior models masked codes only.
        """


@runtime_checkable
class Featured(Protocol):
    """A prior that says what each of its layers makes of a picture, for linear probes and fine-tuning.

    It may have `loss_and_features(batch, cond, *, step, rng) -> (Losses, [B,D])`: its `loss`, and the last of its
    `features` of the codes as that loss shows them (masked, where it masks), from one pass. Fine-tuning then makes one
    where it would make two.
    """

    def features(self, codes: Tensor, cond: Cond) -> list[Tensor]:
        """Return [B,D] of each layer for codes [B,N], shallow to deep; -1 marks a masked code where not `causal`.

        With gradient, where there is one. The last entry is what a class head stands on.
        """


@runtime_checkable
class Denoiser(Protocol):
    """A network that predicts noise, velocity or the clean picture from a noisy one."""

    prediction: str
    schedule: Any
    bounded: bool

    def predict(self, z: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        """Return the prediction for z [B,C,H,W] at logsnr [B]."""


@runtime_checkable
class Reranker(Protocol):
    """Scores how well a picture fits a caption."""

    def score(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Return [B], higher is better, for images [B,3,H,W] of any size and as many texts."""


@runtime_checkable
class Trainable(Protocol):
    """A part with a loss."""

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return "loss" (a mean over samples of per-sample values) and further scalars worth a curve.

        A loss that is a mean over the tokens of the whole batch divides by `batch.tokens` where that is set, and
        else counts over the processes. For it to be set, the part has `tokens(batch, cond, *, rng) -> [B]`, the
        tokens of each sample.
        """


@runtime_checkable
class Fitted(Protocol):
    """A part that is fitted in one go instead of trained (BPE tokenizer, colour palette)."""

    def fit(self, dataset: Dataset, *, seed: int) -> None:
        """Fit on the dataset; afterwards the part's whole state is in its `state_dict`."""


@runtime_checkable
class Generator(Protocol):
    """A whole system."""

    parts: Mapping[str, Any]
    stages: Mapping[str, tuple[str, ...]]

    def generate(
        self,
        prompts: Sequence[Any],
        images_per_prompt: int = 1,
        rerank: int | None = None,
        seed: int = 0,
    ) -> Tensor:
        """Return images [prompts*images_per_prompt,3,H,W] in [0, 1], prompt-major.

        Strings are prompts, integers labels, None is unconditional. With `rerank=k`, k candidates are drawn for
        each prompt and the best `images_per_prompt` come back, best first. Candidate j of prompt i depends only
        on (seed, i, j).
        """

    def encode(self, part: str, batch: Batch, *, rng: Rng | None = None) -> Batch:
        """Return the batch with what the stage's frozen parts compute filled in; no gradient."""

    def loss(self, part: str, batch: Batch, *, step: int, rng: Rng) -> Losses:
        """Return the loss of the stage's trained parts."""


class Dataset(Protocol):
    """Captioned or labelled pictures that are read by index."""

    uri: str
    """How it was asked for: "shapes", "folder:PATH"."""
    split: str
    """"train", "validation" or "heldout"."""
    classes: tuple[str, ...] | None
    """Names of the labels, or None."""
    stochastic: bool
    """True when the transform draws random numbers: such pictures are never stored as codes."""
    fingerprint: str
    """Changes whenever a row would read differently; keys stores."""

    def __len__(self) -> int: ...

    def read(self, rows: Sequence[int], rng: Rng | None = None) -> Batch:
        """Return images [B,3,H,W] in [0, 1], texts and, where known, labels of these rows."""

    def texts(self) -> Iterable[str]:
        """Yield every caption, without reading pictures."""


class Engine(Protocol):
    """Owns the wrapped module, the optimiser and the step."""

    world: Any
    """The processes: see `zoo.train.world.Processes`."""
    device: Any
    """Where the stage and its batches are."""
    zero: int
    """What it shards, as ZeRO's stages: 0 nothing, 1 the optimiser's state, 2 gradients too, 3 parameters too."""

    def building(self) -> Any:
        """Return the context in which trained parts are constructed."""

    def prepare(self, stage: Any, recipe: Recipe, *, steps: int) -> None:
        """Take the stage (a module whose forward is the loss) and make its optimiser."""

    def __call__(self, batch: Batch, step: int, rng: Rng) -> Losses: ...

    def backward(self, loss: Tensor) -> None: ...

    def gradients(self) -> Iterator[Grad]:
        """Yield every gradient, in one order on every rank."""

    def step(self) -> dict[str, float]:
        """Clip, update or skip, average, clear the gradients; return what is worth a curve."""

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the trained parts hold, whole, the weights to sample from; all ranks enter it."""

    def weights(self) -> Mapping[str, Any]:
        """Return the stage's tensors as they are to be kept, by name, each a `zoo.weights.Lazy`.

        All ranks fetch them, in the same order; each comes whole and may be forgotten before the next.
        """

    def save(self, folder: Any) -> None: ...

    def load(self, folder: Any) -> None: ...


__all__ = [
    "INTERFACES", "Batch", "Codebook", "Cond", "Dataset", "Denoiser", "Engine", "Facts", "Featured", "Fitted",
    "Generator", "Grad", "Grid", "Latent", "Losses", "Prediction", "Prior", "Recipe", "Reduced", "Reducer",
    "Reranker", "Shard", "TextEncoder", "Tokenizer", "Traffic", "Trainable",
]  # fmt: skip

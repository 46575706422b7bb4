"""What a part costs before it is built: its parameters, its work, and what training keeps. Imports no torch.

A part's config answers `cost(batch) -> Cost`. It is a walk through the model with a `Tally`, in the order in which the
model registers its parameters (`named_parameters`); one line states a layer's tensors, products and kept values:

    t = Tally()
    with t.residual("mlp", rows * width):
        t.norm("norm", width, rows)
        t.linear("up", width, 4 * width, rows)
        t.keep(4 * rows * width)  # GELU keeps its input
        t.linear("down", 4 * width, width, rows)
    return t.cost()

Work is in FLOPs, two for a multiplication with its addition; only products are counted (linear layers, convolutions,
attention, distances), as `torch.utils.flop_counter` does, but attention by the keys its mask keeps.

Kept are the values that the backward pass reads and that are no parameters, each once though two layers read it:
a layer counts its input, and what lies between two layers counts what no layer does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import attrs

from zoo.errors import ConfigError


@attrs.frozen
class Weight:
    """One parameter tensor."""

    name: str
    """Its name in the part, as in `named_parameters`."""
    shape: tuple[int, ...]
    block: str | None = None
    """Name of the residual block whose branch holds it, or None."""
    stacked: int = 1
    """How many matrices of one kind lie one below the other: 3 for queries, keys and values in one tensor."""

    @property
    def numel(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@attrs.frozen(kw_only=True)
class Kept:
    """Values of one sample that are kept for the backward pass, by how wide they are."""

    stream: int = 0
    """Values of the residual stream, as a norm reads it."""
    inner: int = 0
    """Values in the precision of the arithmetic."""
    wide: int = 0
    """Values in fp32 whatever the precision: statistics, logits."""
    raw: int = 0
    """Bytes of what is no floating-point number: indices, masks."""

    def __add__(self, other: Kept) -> Kept:
        return Kept(
            stream=self.stream + other.stream,
            inner=self.inner + other.inner,
            wide=self.wide + other.wide,
            raw=self.raw + other.raw,
        )

    def bytes(self, widths: Widths) -> int:
        """Return bytes, with values as wide as this."""
        return widths.stream * self.stream + widths.inner * self.inner + 4 * self.wide + self.raw


@attrs.frozen
class Widths:
    """Bytes of a value that is kept."""

    entry: int
    """Of a residual branch's input, where that is all that is kept of the branch."""
    stream: int
    """Of the residual stream, as a norm reads it."""
    inner: int
    """Of what layers compute."""


@attrs.frozen(kw_only=True)
class Block:
    """One residual branch, of one sample."""

    name: str
    entry: int
    """Values of the branch's inputs, which are all that stays when the branch is recomputed; 0 where they are kept
    outside anyway."""
    kept: Kept
    flops: int


@attrs.frozen(kw_only=True)
class Cost:
    """What a part costs; work and kept values are of one sample's loss."""

    weights: tuple[Weight, ...] = ()
    """Every parameter tensor, in the order of `named_parameters`."""
    flops: int = 0
    """Forward FLOPs, blocks included."""
    kept: Kept = Kept()
    """What is kept outside residual branches."""
    blocks: tuple[Block, ...] = ()
    largest: int = 0
    """Values of the largest tensor that is kept: in the backward pass its gradient and the next one's exist."""
    encode: int = 0
    """FLOPs of `encode`, what a later stage asks of the part once it is frozen; 0: nothing is asked."""
    whole_batch: bool = False
    """True when the loss looks across the batch, which then cannot be split into micro-batches."""

    @property
    def params(self) -> int:
        """Number of parameters."""
        return sum(w.numel for w in self.weights)

    def is_matrix(self, weight: Weight) -> bool:
        """Return True where low-rank compression applies: two dimensions or more, inside a residual branch.

        A part without any residual branch has no such line between layers and tables; there every tensor of two
        dimensions or more counts. Everything else stays dense, in fp32 where precisions are mixed.
        """
        return len(weight.shape) >= 2 and (weight.block is not None or not self.blocks)

    def activations(self, samples: int, widths: Widths, *, recompute: bool) -> int:
        """Return the bytes kept at the end of a forward pass, or at the fullest moment of recomputing the branches.

        Args:
            samples: of one device's micro-batch.
            widths: bytes of a value.
            recompute: branches keep their input alone, and one at a time is recomputed.
        """
        total = self.kept.bytes(widths)
        if recompute and self.blocks:
            total += sum(widths.entry * block.entry for block in self.blocks)
            # A norm in the branch that is being recomputed reads the kept input itself, unless that is narrower.
            again = widths if widths.stream != widths.entry else attrs.evolve(widths, stream=0)
            total += max(block.kept.bytes(again) for block in self.blocks)
        else:
            total += sum(block.kept.bytes(widths) for block in self.blocks)
        return samples * total

    def recomputed(self) -> int:
        """Return the FLOPs of one sample that recomputing the branches repeats."""
        return sum(block.flops for block in self.blocks)


class Tally:
    """Writes down a model's cost layer by layer. Rows are those of one sample: positions, pixels, tokens."""

    def __init__(self) -> None:
        self._path: list[str] = []
        self._block: str | None = None
        self._weights: list[Weight] = []
        self._flops = 0
        self._kept = Kept()
        self._largest = 0
        self._blocks: list[Block] = []

    @contextmanager
    def at(self, *path: str | int) -> Iterator[None]:
        """Enter a submodule, or several at once; an integer is a place in a list."""
        before = len(self._path)
        self._path += map(str, path)
        yield
        del self._path[before:]

    @contextmanager
    def residual(self, name: str | int, entry: int) -> Iterator[None]:
        """Enter the branch of the `zoo.nn.Residual` with this name, whose input has `entry` values a sample."""
        outer, self._block = self._block, ".".join([*self._path, str(name)])
        if outer is not None:  # a sum inside a branch: its parameters are its own, all else is the outer branch's
            with self.at(name, "branch"):
                yield
            self._block = outer
            return
        kept, before, self._kept = self._kept, self._flops, Kept()
        with self.at(name, "branch"):
            yield
        self._blocks.append(Block(name=self._block, entry=entry, kept=self._kept, flops=self._flops - before))
        self._block, self._kept = None, kept

    def weight(self, name: str, *shape: int, stacked: int = 1) -> None:
        """Count one parameter tensor."""
        self._weights.append(Weight(".".join([*self._path, name]), shape, self._block, stacked))

    def keep(self, inner: int = 0, *, stream: int = 0, wide: int = 0, raw: int = 0) -> None:
        """Count what the backward pass reads of a sample: values by width, `raw` in bytes."""
        self._kept += Kept(stream=stream, inner=inner, wide=wide, raw=raw)
        self._largest = max(self._largest, stream, inner, wide)

    def work(self, flops: int) -> None:
        """Count FLOPs of the forward pass."""
        self._flops += flops

    @property
    def flops(self) -> int:
        """FLOPs counted so far."""
        return self._flops

    def linear(
        self, name: str, n_in: int, n_out: int, rows: int, *, bias: bool = True, keep: bool = True, stacked: int = 1
    ) -> None:
        """A linear layer on `rows` vectors; `keep=False` where its input is counted elsewhere."""
        with self.at(name):
            self.weight("weight", n_out, n_in, stacked=stacked)
            if bias:
                self.weight("bias", n_out)
        self.work(2 * rows * n_in * n_out)
        self.keep(rows * n_in if keep else 0)

    def conv(
        self,
        name: str | int,
        n_in: int,
        n_out: int,
        kernel: int | tuple[int, int],
        rows: int,
        *,
        reads: int | None = None,
        bias: bool = True,
        transposed: bool = False,
    ) -> None:
        """A convolution with `rows` places of output (of input, where transposed).

        `reads` is the number of places of the input that it keeps: `rows` where nothing is said, and 0 where its
        input is counted elsewhere.
        """
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        with self.at(name):
            self.weight("weight", *((n_in, n_out) if transposed else (n_out, n_in)), *sides)
            if bias:
                self.weight("bias", n_out)
        self.work(2 * rows * n_in * n_out * math.prod(sides))
        self.keep((rows if reads is None else reads) * n_in)

    def norm(self, name: str, width: int, rows: int) -> None:
        """A layer norm: it keeps the residual stream it reads, and a mean and a deviation a row."""
        with self.at(name):
            self.weight("weight", width)
            self.weight("bias", width)
        self.keep(stream=rows * width, wide=2 * rows)

    def embedding(self, name: str, count: int, width: int, rows: int) -> None:
        """A table of `count` rows, of which `rows` are looked up; the indices are kept."""
        with self.at(name):
            self.weight("weight", count, width)
        self.keep(raw=8 * rows)

    def attention(self, width: int, heads: int, rows: int, pairs: int) -> None:
        """One softmax of `pairs` queries and keys that the mask keeps, in one kernel.

        Queries, keys and values are kept, and a number a row and head; the weights are not. The output is counted by
        the layer that reads it.
        """
        self.work(4 * width * pairs)
        self.keep(3 * rows * width, wide=heads * rows)

    def cross_entropy(self, rows: int, classes: int) -> None:
        """The negative log-likelihood of `rows` classes; the log-probabilities and the targets are kept."""
        self.keep(wide=rows * classes, raw=8 * rows)

    def cost(self, *, encode: int = 0, whole_batch: bool = False) -> Cost:
        """Return what was counted."""
        return Cost(
            weights=tuple(self._weights),
            flops=self._flops,
            kept=self._kept,
            blocks=tuple(self._blocks),
            largest=self._largest,
            encode=encode,
            whole_batch=whole_batch,
        )


def bound(config: object, *names: str) -> None:
    """Require fields that other parts decide.

    Raises:
        ConfigError: one of them is still None.
    """
    for name in names:
        if getattr(config, name) is None:
            raise ConfigError(f"{name}: still open, so {type(config).__name__} has no size; take it inside a system")

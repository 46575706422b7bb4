"""Gradients as matrices, their products with factors, and orthonormal columns.

Letters: M the matrix [p,q] with p <= q, which is the shard or its transpose; r the rank; P [p,r], Q [q,r]. A product
with a transposed large matrix is written Mt P = (Pt M)t: the large operand is then read along its rows, several times
faster on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import torch
from torch import Tensor

from zoo.interfaces import Grad, Shard
from zoo.rng import Rng
from zoo_powersgd.layout import Choice, LowRank, low_rank


@attrs.frozen(eq=False)
class Matrix:
    """One gradient that is compressed."""

    name: str
    tensor: Tensor
    """The gradient, in the shape the engine has it in."""
    low: LowRank

    @property
    def grid(self) -> Tensor:
        """The gradient as [rows, columns]: a view where its memory allows."""
        return self.tensor.reshape(self.low.rows, self.low.columns)

    def project(self, x: Tensor, q: Tensor) -> Tensor:
        """Return P = M Q of a matrix `x` that lies as `grid` does."""
        return _times(x, q, transposed=self.low.transposed)

    def back(self, x: Tensor, p: Tensor) -> Tensor:
        """Return Q = Mt P of a matrix `x` that lies as `grid` does."""
        return _times(x, p, transposed=not self.low.transposed)

    def expand(self, p: Tensor, q: Tensor, out: Tensor | None = None) -> Tensor:
        """Return P Qt, lying as `grid` does."""
        left, right = (q, p) if self.low.transposed else (p, q)
        return torch.mm(left, right.mT, out=out)

    def write(self, p: Tensor, q: Tensor) -> None:
        """Put P Qt into the gradient."""
        if self.tensor.is_contiguous():
            self.expand(p, q, out=self.grid)
        else:
            self.tensor.copy_(self.expand(p, q).view(self.tensor.shape))


def _times(x: Tensor, thin: Tensor, *, transposed: bool) -> Tensor:
    """Return x @ thin, or xt @ thin."""
    return (thin.mT @ x).mT if transposed else x @ thin


def split(choice: Choice, grads: Iterable[Grad], *, dense: bool) -> tuple[list[Matrix], list[Grad]]:
    """Return the gradients that are compressed, none where `dense`, and those that are sent whole."""
    matrices: list[Matrix] = []
    whole: list[Grad] = []
    for grad in grads:
        shard = Shard(shape=grad.shape, local=tuple(grad.tensor.shape), axis=grad.axis, matrix=grad.matrix)
        low = None if dense else low_rank(choice, shard)
        if low is None:
            whole.append(grad)
        else:
            matrices.append(Matrix(grad.name, grad.tensor, low))
    return matrices, whole


def draw(seed: int, matrix: Matrix) -> Tensor:
    """Return a Gaussian Q [q,r], a function of the seed and the gradient's name: the same on every rank."""
    low = matrix.low
    q = Rng(seed, torch.arange(low.q)).fork(f"powersgd/{matrix.name}").normal(low.rank)
    return q.to(matrix.tensor)


def orthonormal(x: Tensor) -> Tensor:
    """Return orthonormal columns that span those of `x`, by Householder reflections (LAPACK's and cuSOLVER's QR).

    A column that depends on those before it becomes one that does not: [p,r] with r <= p always has r of them.
    """
    return torch.linalg.qr(x).Q


def flatten(factors: list[Tensor]) -> Tensor:
    """Return factors one after the other, in one flat tensor."""
    return torch.cat([x.reshape(-1) for x in factors])


def unflatten(flat: Tensor, factors: list[Tensor]) -> list[Tensor]:
    """Return the parts of a flat tensor, in the shapes of `factors`; views."""
    parts = flat.split([x.numel() for x in factors])
    return [part.view(x.shape) for part, x in zip(parts, factors, strict=True)]

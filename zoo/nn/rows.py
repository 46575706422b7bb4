"""Products of few rows, as a cached step of a decoder makes them: bound by reading the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Product:
    """A linear layer's product with few rows, its weight packed once.

    Args:
        weight: [out,in].
        rows: rows of what it is called with.
        bias: [out].
    """

    def __init__(self, weight: Tensor, rows: int, bias: Tensor | None = None) -> None:
        self.bias = bias
        # One row is read fastest by the usual product, several by oneDNN's, twice as fast on weights that it packed.
        self.onednn = rows > 1 and _takes(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if self.onednn else _packed(weight.t())

    def __call__(self, x: Tensor) -> Tensor:
        """Return [R,out] of [R,in]."""
        if self.onednn:
            made: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
            return made
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def add_to(self, x: Tensor, y: Tensor) -> None:
        """Add the product of y [R,in] to x [R,out], in place."""
        if self.onednn:
            x.add_(self(y))
            return
        if self.bias is not None:
            x.add_(self.bias)
        x.addmm_(y, self.weight)


def product(linear: nn.Linear, rows: int) -> Product:
    """Return a layer's product with so many rows."""
    return Product(linear.weight, rows, linear.bias)


def _takes(weight: Tensor) -> bool:
    """Return whether oneDNN's product is for such weights here."""
    cpu = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return cpu and weight.dtype == torch.float32


def _packed(weight: Tensor) -> Tensor:
    """Return [in,out] with its longer side contiguous: along it the product streams about twice as fast on a CPU."""
    return weight.contiguous() if weight.shape[1] > weight.shape[0] else weight.t().contiguous().t()

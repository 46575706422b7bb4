"""Products of few rows, as a cached step of a decoder makes them: bound by reading the weights."""

from __future__ import annotations

from torch import Tensor, nn


def packed(linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return (bias, weight [in,out]) with the longer side of the weight contiguous.

    A product of few rows reads the weight once and is bound by that; along its longer side it streams about twice
    as fast on a CPU.
    """
    weight = linear.weight.t()
    bias = weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias
    return bias, weight.contiguous() if weight.shape[1] > weight.shape[0] else weight.t().contiguous().t()

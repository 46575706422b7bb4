"""Root-mean-square norms, which take no mean away and have no bias: x / sqrt(mean(x²) + eps) * gain.

[1] B. Zhang, R. Sennrich: Root Mean Square Layer Normalization. arXiv:1910.07467
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from zoo.nn.precision import full_precision, wide


class _OnCpu(torch.autograd.Function):
    """`F.rms_norm` for a CPU, where torch has no kernel of its own for it.

    Faster in training than torch's several kernels, and it keeps the input and a number a row, where they keep the
    result before the gain too.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        rate = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, rate, gain)
        return (x * rate).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, rate, gain = ctx.saved_tensors
        product = (grad * x).reshape(-1, x.shape[-1])
        gain_grad = rate.view(1, -1).mm(product).view_as(gain)
        shrink = product.mv(gain).view_as(rate).mul_(rate**3).div_(x.shape[-1])
        return (grad * gain).mul_(rate).addcmul_(x, shrink, value=-1), gain_grad, None


class RmsNorm(nn.Module):
    """A norm with a gain that begins as 1 [1]. Computes in full precision.

    Args:
        width: D, of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return [...,D] in the gain's own precision."""
        with full_precision(x):
            x, gain = wide(x).to(wide(self.weight).dtype), wide(self.weight)
            if x.device.type == "cpu":
                return _OnCpu.apply(x, gain, self.eps).to(self.weight.dtype)
            return F.rms_norm(x, gain.shape, gain, self.eps).to(self.weight.dtype)

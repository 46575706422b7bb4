"""Quick-GELU, x sigmoid(1.702 x), of ImageGPT and CLIP.

[1] D. Hendrycks, K. Gimpel: Gaussian error linear units. arXiv:1606.08415, section 2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

QUICK = 1.702
"""x sigmoid(1.702 x) is silu(1.702 x) / 1.702 [1]."""


class _QuickGelu(torch.autograd.Function):
    """Keeps one tensor, as silu does; the two factors cancel in the gradient, where autograd would multiply by both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = x * QUICK
        ctx.save_for_backward(scaled)
        return F.silu(scaled).mul_(1 / QUICK)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        slope: Tensor = torch.ops.aten.silu_backward(grad, scaled)
        return slope


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), of any shape."""
    y: Tensor = _QuickGelu.apply(x)
    return y

"""Quick-GELU, x sigmoid(1.702 x), of ImageGPT and CLIP.

[1] D. Hendrycks, K. Gimpel: Gaussian error linear units. arXiv:1606.08415, section 2
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

QUICK = 1.702
"""x sigmoid(1.702 x) is silu(1.702 x) / 1.702 [1]."""
FLAT = 1e4
"""From here on the slope is 0 or 1; 1.702 x may be no number of fp16 where x is one."""


class _QuickGelu(torch.autograd.Function):
    """Keeps its input alone; in the gradient of silu(1.702 x) / 1.702 the two factors cancel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x * QUICK).sigmoid_().mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        scaled = x * QUICK
        if scaled.dtype == torch.float16:
            scaled.clamp_(-FLAT, FLAT)
        slope: Tensor = torch.ops.aten.silu_backward(grad, scaled)
        return slope


def quick_gelu(x: Tensor) -> Tensor:
    """Return x sigmoid(1.702 x), of any shape."""
    y: Tensor = _QuickGelu.apply(x)
    return y

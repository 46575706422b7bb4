"""A residual branch in fp16 with a gradient scale of its own, between fp32 identity paths.

    forward   x fp32 -> fp16 -> branch -> fp32 ->                                   added to x
    backward  g fp32 -> times scale -> fp16 -> branch -> fp32 -> filtered -> divided by scale -> added to g

The filter puts zero where a value is Inf or NaN, so that an overflow in one branch does not reach the branches before
it. The parameters' gradients carry the scale: who makes the step divides them by it, in fp32 (`zoo.train.resblock`).

Inside the branch autocast decides, operation by operation: products and convolutions take fp16 copies of fp32
parameters (or fp16 parameters as they are), norms keep their fp32 gains and compute in fp32. It needs nothing of the
branch, and looks at a parameter only when it is used, so that parameters gathered just then work too. A bias is copied
as its matrix is: its gradient is summed in fp32, rounded to fp16 once, and fp32 from there on.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, appendix D and figure 4
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Enter(torch.autograd.Function):
    """fp16 forward; filter and unscale backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.scale, ctx.dtype = scale, x.dtype
        return x.to(torch.float16)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return grad.to(ctx.dtype).nan_to_num(0.0, 0.0, 0.0).div_(ctx.scale), None


class _Leave(torch.autograd.Function):
    """fp32 forward; scale and round to fp16 backward."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor) -> Tensor:
        ctx.scale, ctx.dtype = scale, y.dtype
        return y.to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (grad,) = grads
        return (grad * ctx.scale).to(torch.float16).to(ctx.dtype), None


def scaled(branch: Callable[..., Tensor], scale: Tensor, x: Tensor, *extra: Any) -> Tensor:
    """Return `branch(x, *extra)` in fp32, computed in fp16, its gradients scaled inside.

    Args:
        branch: a function of tensors and of anything else.
        scale: one number on the branch's device; the forward and the backward pass read it when they run, so it may
            change between updates only.
        x: the identity path's tensor.
        extra: what else the branch takes. A tensor with a gradient enters as `x` does; anything else is passed as it
            is, so a tensor with a gradient must not be hidden in a container or closure.
    """
    inputs = [_Enter.apply(e, scale) if isinstance(e, Tensor) and e.requires_grad else e for e in extra]
    # Without a cache of fp16 copies: a parameter is used once a pass, and one that is partitioned must not be kept.
    with torch.autocast(x.device.type, dtype=torch.float16, cache_enabled=False):
        y = branch(_Enter.apply(x, scale), *inputs)
    return _Leave.apply(y, scale)

"""Group norm with the activation behind it, in few passes over channels-last pictures.

The chain that networks of this kind spend their time in, beside convolutions, is norm, scale and shift, activation.
Done one after another each step writes a tensor and keeps it for the backward pass. Here the first three are one affine
map a sample and channel, the activation works in place, and only the input is kept.

Letters: B batch, N places, C channels, G groups.

[1] Y. Wu, K. He: Group normalization. arXiv:1803.08494
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from zoo.nn.precision import wide

_aten = torch.ops.aten
ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "silu": (_aten.silu_, _aten.silu_backward),
    "gelu": (_aten.gelu_, _aten.gelu_backward),
    "none": (lambda x: x, lambda grad, x: grad),
}
"""Name -> the activation in place, and its gradient from the output's and the input."""


class GroupNorm(nn.Module):
    """Group norm and an activation of [B,C,h,w]; statistics are fp32, in every precision [1].

    Args:
        groups: must divide `width`.
        width: C.
        activation: "silu", "gelu" or "none".
        eps: added to the variance.
    """

    def __init__(self, groups: int, width: int, activation: str, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups, self.activation, self.eps = groups, activation, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """Return activation((1 + scale) norm(x) + shift), modulation [B,2C] being scale and shift, zero where None."""
        gain, bias = wide(self.weight)[None], wide(self.bias)[None]
        if modulation is not None:
            scale, shift = wide(modulation).chunk(2, dim=1)
            scale = 1 + scale
            gain, bias = gain * scale, torch.addcmul(shift, bias, scale)
        y_BNC = _NormAct.apply(_places(x), gain, bias, self.groups, self.eps, self.activation)
        return y_BNC.transpose(1, 2).unflatten(2, x.shape[2:])


def _places(x: Tensor) -> Tensor:
    """Return [B,C,h,w] as [B,N,C], a view where it is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).contiguous()


def _by_group(x_BC: Tensor, groups: int) -> Tensor:
    """Return the mean over each group's channels, repeated for each of them."""
    return x_BC.unflatten(1, (groups, -1)).mean(2, keepdim=True).expand(-1, -1, x_BC.shape[1] // groups).flatten(1)


class _NormAct(torch.autograd.Function):
    """activation(gain · norm(x) + bias) of x [B,N,C], with gain and bias [B,C] or [1,C]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, bias: Tensor, groups: int, eps: float, activation: str) -> Tensor:
        wide_x = wide(x)
        mean = _by_group(wide_x.mean(1), groups)
        variance = _by_group((wide_x - mean[:, None]).square_().mean(1), groups)
        rstd = (variance + eps).rsqrt()
        slope = rstd * gain
        y = torch.addcmul(torch.addcmul(bias, mean, slope, value=-1)[:, None], wide_x, slope[:, None])
        ctx.save_for_backward(x, gain, bias, mean, rstd)
        ctx.groups, ctx.activation = groups, activation
        return ACTIVATIONS[activation][0](y).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, bias, mean, rstd = ctx.saved_tensors
        wide_x, slope = wide(x), rstd * gain
        y = torch.addcmul(torch.addcmul(bias, mean, slope, value=-1)[:, None], wide_x, slope[:, None])
        g = ACTIVATIONS[ctx.activation][1](wide(grads[0]).contiguous(), y)
        places = x.shape[1]
        sum_g = g.sum(1)
        sum_gn = torch.addcmul((g * wide_x).sum(1), mean, sum_g, value=-1) * rstd  # Σ g · norm(x)
        # dx = rstd (gain g - mean(gain g) - norm(x) mean(gain g norm(x))), means over places and the group's channels
        on_x = rstd.square() * _by_group(gain * sum_gn, ctx.groups) / -places
        rest = torch.addcmul(rstd * _by_group(gain * sum_g, ctx.groups) / places, on_x, mean).neg_()
        dx = torch.addcmul(rest[:, None], wide_x, on_x[:, None]).addcmul_(g, slope[:, None])
        return dx.to(x.dtype), sum_gn.sum_to_size(gain.shape), sum_g.sum_to_size(bias.shape), None, None, None

"""Quick-GELU beside its formula, differentiated by autograd."""

import torch

from zoo.nn.quick import quick_gelu


def formula(x):
    return x * torch.sigmoid(1.702 * x)


def test_values_and_gradients_are_the_formulas():
    x = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    g = torch.randn(64, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours, theirs = quick_gelu(x), formula(x)
    assert torch.allclose(ours, theirs, rtol=1e-14, atol=1e-14)
    mine, other = (torch.autograd.grad(y, x, g)[0] for y in (ours, theirs))
    assert torch.allclose(mine, other, rtol=1e-13, atol=1e-14)


def test_the_input_is_left_alone_and_far_values_are_finite():
    x = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4])
    y = quick_gelu(x)
    assert x.tolist() == [-1e4, -1.0, 0.0, 1.0, 1e4]
    assert y[[0, 2, 4]].tolist() == [0.0, 0.0, 1e4]


def test_half_precision_stays_half():
    x = torch.randn(32, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    y = quick_gelu(x)
    y.float().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert torch.allclose(y.float(), formula(x.detach().float()), atol=0.02)

"""Quick-GELU beside its formula, differentiated by autograd."""

import pytest
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


@pytest.mark.parametrize(("dtype", "apart"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_follows_the_formula_and_its_gradient(dtype, apart):
    x = torch.randn(256, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    y = quick_gelu(x)
    y.sum().backward()
    wide = x.detach().float().requires_grad_()
    formula(wide).sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert torch.allclose(y.float(), formula(wide), atol=apart)
    assert torch.allclose(x.grad.float(), wide.grad, atol=apart)


def test_values_near_the_end_of_fp16_have_a_value_and_a_slope():
    x = torch.tensor([-6e4, -4e4, 4e4, 6e4]).half().requires_grad_()
    y = quick_gelu(x)
    y.backward(torch.ones_like(y))
    assert y.tolist() == [0.0, 0.0, *x[2:].tolist()]
    assert x.grad.tolist() == [0.0, 0.0, 1.0, 1.0]

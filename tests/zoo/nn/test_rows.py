"""Products of few rows equal the linear layer, packed by whichever library."""

import pytest
import torch
from torch import nn

from zoo.nn.rows import Product, product


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-5), (torch.float64, 1e-13), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("rows", [1, 2, 7])
@pytest.mark.parametrize("sizes", [(24, 72), (72, 24), (16, 16)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_the_layer(bias, sizes, rows, dtype, near):
    torch.manual_seed(0)
    layer = nn.Linear(*sizes, bias=bias).to(dtype)
    x, into = torch.randn(rows, sizes[0]).to(dtype), torch.randn(rows, sizes[1]).to(dtype)
    with torch.inference_mode():
        made, expected = product(layer, rows), layer(x)
        assert torch.allclose(made(x), expected, rtol=0, atol=near)
        sum_ = into + expected
        made.add_to(into, x)
        assert torch.allclose(into, sum_, rtol=0, atol=near)


def test_weights_are_packed_once():
    weight = torch.ones(8, 4)
    made = Product(weight, 3)
    weight.zero_()
    assert torch.equal(made(torch.ones(3, 4)), torch.full((3, 8), 4.0))

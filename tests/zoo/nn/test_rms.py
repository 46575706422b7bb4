"""Root-mean-square norm beside torch's, values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from zoo.nn.rms import RmsNorm


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6), (2, 0, 6)])
def test_it_is_torchs_of_any_number_of_dimensions(shape):
    source = torch.Generator().manual_seed(0)
    x, probe = (torch.randn(shape, dtype=torch.float64, generator=source) for _ in range(2))
    norm = RmsNorm(6, 1e-6).double()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(6, generator=source) + 0.5)
    inputs = (x.requires_grad_(), norm.weight)
    found, wanted = norm(x), F.rms_norm(x, (6,), norm.weight, 1e-6)
    assert torch.allclose(found, wanted, atol=1e-14)
    for a, b in zip(*(torch.autograd.grad(y, inputs, probe) for y in (found, wanted)), strict=True):
        assert torch.allclose(a, b, atol=1e-13)

"""Group norm with its activation beside torch's, in every layout and precision."""

import pytest
import torch
from torch.nn import functional as F

from zoo_imagen.norm import GroupNorm

LAYOUTS = {
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "channels first": lambda x: x.contiguous(),
    "a window": lambda x: F.pad(x, (1, 2, 1, 1))[:, :, 1:-1, 1:-2],
    "every other": lambda x: x.repeat_interleave(2, dim=0)[::2].transpose(2, 3).contiguous().transpose(2, 3),
}
ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "none": lambda x: x}


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def both(x, activation="silu", groups=4):
    """Return, of x in its own precision and of torch's in double, the result and the gradients of x, gain and bias."""
    found = []
    probe = normal(*x.shape, seed=1)
    gain, bias = 1 + normal(x.shape[1], seed=2) / 2, normal(x.shape[1], seed=3)
    for dtype in (x.dtype, torch.float64):
        norm = GroupNorm(groups, x.shape[1], activation).double()
        with torch.no_grad():
            norm.weight.copy_(gain)
            norm.bias.copy_(bias)
        norm = norm if dtype == torch.float64 else norm.float()
        own = x.detach().to(dtype).requires_grad_()
        theirs = ACTIVATIONS[activation](F.group_norm(own, groups, norm.weight, norm.bias, 1e-5))
        y = theirs if found else norm(own)
        found.append((y, *torch.autograd.grad(y, (own, norm.weight, norm.bias), probe.to(dtype))))
    return found


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("modulated", [False, True])
def test_group_norm_is_torchs(activation, modulated):
    """Values and all gradients, of values far from zero."""
    norm = GroupNorm(4, 8, activation).double()
    x, more, probe = normal(2, 8, 3, 5), normal(2, 16, seed=1), normal(2, 8, 3, 5, seed=2)
    x = (x + 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    inputs = [x, norm.weight, norm.bias]
    with torch.no_grad():
        norm.weight.copy_(normal(8, seed=3))
        norm.bias.copy_(normal(8, seed=4))
    wanted = F.group_norm(x, 4, norm.weight, norm.bias, 1e-5)
    if modulated:
        inputs.append(more.requires_grad_())
        scale, shift = more[:, :, None, None].chunk(2, 1)
        wanted = (1 + scale) * wanted + shift
    wanted = ACTIVATIONS[activation](wanted)
    found = norm(x, more if modulated else None)
    assert torch.allclose(found, wanted, atol=1e-12)
    pairs = zip(torch.autograd.grad(found, inputs, probe), torch.autograd.grad(wanted, inputs, probe), strict=True)
    assert all(torch.allclose(a, b, atol=1e-11) for a, b in pairs)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_layout_is_normed_alike_and_left_alone(layout):
    x = LAYOUTS[layout](normal(2, 8, 3, 5) + 3)
    kept = x.clone()
    for own, wanted in zip(*both(x), strict=True):
        assert torch.allclose(own, wanted, atol=1e-11)
    assert torch.equal(x, kept)


def test_layouts_differ():
    """Or the test above would see one alone."""
    strides = {make(normal(2, 8, 3, 5)).stride() for make in LAYOUTS.values()}
    assert len(strides) == len(LAYOUTS)


def test_group_norm_computes_in_fp32():
    """Half-precision pictures have fp32 statistics: the result is that of fp32, rounded once."""
    norm = GroupNorm(2, 8, "silu")
    x = (normal(2, 8, 16, 16) * 0.01 + 4).bfloat16()
    assert torch.equal(norm(x), norm(x.float()).bfloat16())
    offset = (normal(2, 8, 16, 16) + 100).float()
    wanted = F.silu(F.group_norm(offset.double(), 2))
    with torch.no_grad():
        assert float((norm(offset).double() - wanted).abs().max()) < 1e-4


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("dtype", "offset", "tolerance"), [(torch.bfloat16, 3, 5e-3), (torch.float32, 3, 2e-6), (torch.float32, 100, 5e-5)]
)
def test_gradients_are_those_of_double_precision(activation, dtype, offset, tolerance):
    """Of the largest of each: half precision rounds them once, and a mean of 100 costs two digits of fp32."""
    x = (normal(2, 16, 16, 16) + offset).to(dtype)
    for own, wanted in zip(*([y.detach() for y in side] for side in both(x, activation)), strict=True):
        assert float((own.double() - wanted).abs().max()) < tolerance * float(wanted.abs().max())


def test_a_second_derivative_is_refused():
    """The backward pass is no graph: it would be wrong without a word."""
    x = normal(2, 8, 3, 5).requires_grad_()
    (grad,) = torch.autograd.grad(GroupNorm(4, 8, "silu").double()(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.square().sum().backward()

"""Long convolutions beside the sums they stand for."""

import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from zoo.nn import blocks, fftconv
from zoo.nn.fftconv import convolve, convolve_with, fast_length, spectra
from zoo.nn.vandermonde import power_sums


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def directly(u, causal, reverse):
    """Return both sums, term by term."""
    y = torch.zeros(*u.shape[:2], 2 * u.shape[2], dtype=u.dtype)
    length, channels = u.shape[1:]
    for at in range(length):
        for m in range(length):
            if m <= at:
                y[:, at, :channels] += causal[:, at - m] * u[:, m]
            if m >= at:
                y[:, at, channels:] += reverse[:, m - at] * u[:, m]
    return y


@pytest.fixture(params=[False, True], ids=["one block", "blocks"])
def _cut(request, monkeypatch):
    """Channels together, and two at a time."""
    if request.param:
        monkeypatch.setattr(blocks, "ON_CPU", 1)
        monkeypatch.setattr(blocks, "NARROWEST", 2)


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize("length", [1, 2, 7, 16])
def test_it_is_the_sum(length):
    u, causal, reverse = normal(3, length, 5), normal(5, length, seed=1), normal(5, length, seed=2)
    wanted = directly(u, causal, reverse)
    assert torch.allclose(convolve(u, causal, reverse), wanted, atol=1e-12)
    assert torch.allclose(convolve(u, causal), wanted[..., :5], atol=1e-12)
    assert torch.allclose(convolve_with(u, spectra([causal, reverse])), wanted, atol=1e-12)
    assert torch.allclose(convolve_with(u, spectra([causal])), wanted[..., :5], atol=1e-12)


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize("length", [1, 6, 7])
def test_gradients(length):
    u, causal, reverse = (x.requires_grad_() for x in (normal(2, length, 3), normal(3, length), normal(3, length)))
    assert torch.autograd.gradcheck(convolve, (u, causal, reverse))
    assert torch.autograd.gradcheck(convolve, (u, causal))
    assert torch.autograd.gradcheck(lambda k: convolve(u.detach(), k), (causal,))


def test_nothing_wraps_around():
    length = 33
    u, causal, reverse = normal(1, length, 4), normal(4, length, seed=1), normal(4, length, seed=2)
    before = convolve(u, causal, reverse)
    for at in (0, 1, 16, length - 1):
        changed = u.clone()
        changed[:, at] += 1e3
        far = (convolve(changed, causal, reverse) - before).abs()
        assert far[:, :at, :4].sum() < 1e-9
        assert far[:, at + 1 :, 4:].sum() < 1e-9
        assert far[:, at].min() > 1


def test_lengths_are_products_of_small_primes():
    assert [fast_length(n) for n in (1, 2, 3, 13, 31, 97, 2047, 2049, 8191)] == [2, 2, 4, 16, 32, 100, 2048, 2160, 8192]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_fp32(dtype):
    fftconv._say_kept_wide.cache_clear()
    u, kernel = normal(2, 64, 4).to(dtype), normal(4, 64, dtype=torch.float32)
    with pytest.warns(UserWarning, match="half precision asked of the FFT: kept in fp32"):
        y = convolve(u, kernel)
    assert torch.equal(y, convolve(u.float(), kernel).to(dtype))
    assert y.dtype == dtype
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        convolve(u, kernel)
        assert torch.equal(convolve_with(u, spectra([kernel])), y)


@pytest.mark.usefixtures("_cut")
@pytest.mark.parametrize("length", [1, 2, 5, 16, 37, 64])
def test_power_sums(length):
    log_a = torch.complex(-normal(5, 3).abs() / 9, normal(5, 3, seed=1))
    c, first = torch.complex(normal(5, 3, seed=2), normal(5, 3, seed=3)), normal(5, seed=4)
    wanted = 2 * (c[..., None] * (log_a[..., None] * torch.arange(length)).exp()).sum(1).real
    wanted[:, 0] += first
    assert torch.allclose(power_sums(log_a, c, first, length), wanted, atol=1e-13)
    inputs = [x.requires_grad_() for x in (log_a, c, first)]
    assert torch.autograd.gradcheck(lambda *x: power_sums(*x, length), inputs)


class Largest(TorchDispatchMode):
    """Notes the most values of any tensor that is made."""

    def __init__(self):
        super().__init__()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, list | tuple) else [made]:
            if isinstance(x, torch.Tensor):
                self.values = max(self.values, x.numel())
        return made


def test_no_table_of_powers_is_made():
    channels, state, length = 24, 16, 4096
    log_a = torch.complex(-normal(channels, state).abs() / 9, normal(channels, state)).requires_grad_()
    c, first = torch.complex(normal(channels, state), normal(channels, state)), normal(channels).requires_grad_()
    u = normal(1, length, channels).requires_grad_()
    with Largest() as largest:
        convolve(u, power_sums(log_a, c.requires_grad_(), first, length)).sum().backward()
    assert log_a.grad is not None
    assert channels * length <= largest.values < channels * length * state / 4

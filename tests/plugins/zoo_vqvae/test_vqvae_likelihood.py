"""p(x|z): probabilities of the 256 values sum to one, and bits come out as defined."""

import pytest
import torch

from zoo_vqvae.likelihood import Gaussian, Softmax, bits


def every_value():
    """All 256 grey values, one a picture."""
    return (torch.arange(256) / 255).view(256, 1, 1, 1).expand(256, 3, 1, 1)


@pytest.mark.parametrize("mean", [-0.7, -0.5, 0.01, 0.31, 0.5, 0.6])
@pytest.mark.parametrize("deviation", [0.002, 0.05, 1.0])
def test_gaussian_bins_sum_to_one(mean, deviation):
    out = torch.full((256, 3, 1, 1), mean)
    nll = Gaussian(0.06, deviation).nll(out.double(), every_value().double())
    assert torch.isfinite(nll).all()
    assert (-nll / 3).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_gaussian_near_its_density_and_safe_in_fp32():
    out, images = torch.full((256, 3, 1, 1), 0.1), every_value()
    nll = Gaussian(0.06, 0.05).nll(out, images)
    normal = torch.distributions.Normal(0.6, 0.05)
    density = -(normal.log_prob(images) - torch.log(torch.tensor(255.0))).flatten(1).sum(1)
    torch.testing.assert_close(nll[1:-1], density[1:-1], rtol=2e-2, atol=2e-2)
    out = torch.full((1, 3, 1, 1), -0.5, requires_grad=True)
    far = Gaussian(0.06, 0.002).nll(out, torch.ones(1, 3, 1, 1))  # 500 deviations away
    far.sum().backward()
    assert torch.isfinite(far).all()
    assert torch.isfinite(out.grad).all()
    assert (out.grad < 0).all()


def test_gaussian_loss_is_the_error_over_the_variance():
    out, images = torch.zeros(2, 3, 4, 4), torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = (images - 0.5).square().mean((1, 2, 3))
    torch.testing.assert_close(Gaussian(0.06, 0.05).loss(out, images), expected / 0.06)


def test_softmax_of_zero_logits_is_eight_bits():
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    nll = Softmax().nll(torch.zeros(2, 768, 4, 4), images)
    assert bits(nll, images).tolist() == pytest.approx([8.0, 8.0])


def test_softmax_reads_its_own_values_back():
    images = (torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0)) / 255).float()
    out = torch.nn.functional.one_hot((images * 255).round().long(), 256).permute(0, 4, 1, 2, 3).flatten(1, 2) * 50.0
    assert torch.equal(Softmax().decode(out), images)
    assert Softmax().nll(out, images).max() < 1e-3

"""The Fréchet distance against known answers."""

import math

import pytest
import torch

from zoo.evaluate.frechet import frechet, gaussian_distance, moments

torch.set_num_threads(1)
F64 = torch.float64


def rotation(d, seed=0):
    q, r = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=F64))
    return q * r.diagonal().sign()


def exactly(mean, cov, n, seed):
    """Rows [n,D] whose mean and covariance are these to rounding."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(seed), dtype=F64)
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (n - 1))).T
    return x @ torch.linalg.cholesky(cov).T + mean


def test_axes_that_are_apart():
    """With one set of axes it is |m1 - m2|² and the squared differences of the standard deviations."""
    one, two = torch.tensor([1.0, 2.0, 0.5], dtype=F64), torch.tensor([3.0, 2.0, 0.0], dtype=F64)
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    found = gaussian_distance(mean, one.square().diag(), torch.zeros(3, dtype=F64), two.square().diag())
    assert found == pytest.approx(1 + 4 + 0.25 + 4 + 0 + 0.25, rel=1e-12)


def test_two_dimensions_whose_axes_differ():
    """Of two 2x2 covariances tr (AB)^½ = (tr AB + 2 (det AB)^½)^½."""
    a = torch.tensor([[2.0, 0.7], [0.7, 1.0]], dtype=F64)
    b = torch.tensor([[0.5, -0.3], [-0.3, 3.0]], dtype=F64)
    shared = math.sqrt(float((a @ b).trace()) + 2 * math.sqrt(float(torch.linalg.det(a @ b))))
    zero = torch.zeros(2, dtype=F64)
    assert gaussian_distance(zero, a, zero, b) == pytest.approx(2 + 1 + 0.5 + 3 - 2 * shared, rel=1e-12)
    assert gaussian_distance(zero, b, zero, a) == pytest.approx(gaussian_distance(zero, a, zero, b), rel=1e-12)


def test_sets_of_features_with_known_moments():
    d, q = 24, rotation(24)
    one, two = torch.linspace(0.1, 2.0, d, dtype=F64), torch.linspace(1.5, 0.2, d, dtype=F64)
    shift = torch.full((d,), 0.25, dtype=F64)
    ours = exactly(torch.zeros(d, dtype=F64), q @ one.square().diag() @ q.T, 200, 1)
    theirs = exactly(shift, q @ two.square().diag() @ q.T, 80, 2)
    known = float(shift.square().sum() + (one - two).square().sum())
    assert frechet(ours, theirs) == pytest.approx(known, rel=1e-9)
    turn = rotation(d, 7)
    assert frechet(ours @ turn, theirs @ turn) == pytest.approx(known, rel=1e-9)
    assert frechet(3 * ours, 3 * theirs) == pytest.approx(9 * known, rel=1e-9)


def test_fewer_pictures_than_features():
    """Covariances of low rank: a set is at no distance from itself, and a shift is what it is."""
    x = torch.randn(10, 300, generator=torch.Generator().manual_seed(3), dtype=F64)
    assert frechet(x, x) < 1e-10
    assert frechet(x, x + 0.5) == pytest.approx(300 * 0.25, rel=1e-10)
    assert frechet(x.float(), x.float()) < 1e-10


def test_moments_divide_by_one_less():
    mean, cov = moments(torch.tensor([[0.0], [2.0]]))
    assert mean.dtype == cov.dtype == F64
    assert (float(mean), float(cov)) == (1.0, 2.0)
    with pytest.raises(ValueError, match="needs two pictures, not 1"):
        moments(torch.zeros(1, 3))

"""Finite scalar quantisation: a bijection between codes and a grid."""

import pytest
import torch

from zoo.nn.fsq import ScalarQuantiser

LEVELS = [(8, 6, 5), (7, 5, 5), (2, 3), (4,)]


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_are_the_grid(levels):
    fsq = ScalarQuantiser(levels)
    codes = torch.arange(fsq.vocab_size)
    vectors = fsq.decode(codes)
    assert len(vectors.unique(dim=0)) == fsq.vocab_size
    assert vectors.abs().max() <= 1
    assert torch.equal(fsq._index(vectors), codes)
    assert torch.equal(fsq.snap(vectors), vectors)
    wide = fsq.encode(20 * random(20_000, len(levels)) + 0.5 * random(20_000, len(levels)))
    assert wide.min() >= 0
    assert wide.max() < fsq.vocab_size
    assert len(fsq.encode(2 * random(20_000, len(levels))).unique()) == fsq.vocab_size, "every code can be reached"


def test_paper_sizes():
    sizes = {(8, 6, 5): 240, (8, 5, 5, 5): 1000, (7, 5, 5, 5, 5): 4375, (8, 8, 8, 6, 5): 15360}
    assert all(ScalarQuantiser(levels).vocab_size == k for levels, k in sizes.items())


@pytest.mark.parametrize("shape", [(3, 3), (3, 3, 7), (3, 3, 4, 5), (3, 3, 2, 3, 4)])
def test_any_rank(shape):
    fsq, z = ScalarQuantiser((8, 6, 5)), random(*shape)
    out = fsq(z)
    assert out.codes.shape == (shape[0], *shape[2:])
    assert not out.loss.any()
    assert torch.equal(out.codes, fsq.encode(z))
    torch.testing.assert_close(out.z, fsq.decode(out.codes))
    torch.testing.assert_close(fsq.snap(fsq.continuous(z)), out.z)


def test_gradient_is_that_of_the_bound():
    fsq, z = ScalarQuantiser((8, 5)), random(4, 2).double().requires_grad_()
    g = random(4, 2).double()
    (got,) = torch.autograd.grad(fsq(z).z, z, g)
    (expected,) = torch.autograd.grad(fsq.continuous(z), z, g)
    assert torch.equal(got, expected)
    assert got.abs().min() > 0


def test_zero_is_in_the_middle_and_rounding_never_moves_more_than_half_a_step():
    fsq, z = ScalarQuantiser((8, 6, 5)), random(500, 3)
    assert not fsq.snap(fsq.continuous(torch.zeros(1, 3))).any()
    step = 1 / torch.tensor([4.0, 3.0, 2.0])
    assert ((fsq.snap(fsq.continuous(z)) - fsq.continuous(z)).abs() <= 0.51 * step).all()


def test_curves_and_rms():
    fsq = ScalarQuantiser((8, 6, 5))
    curves = fsq(random(64, 3, 30)).curves
    assert 1 <= curves["perplexity"] <= 240
    assert 0 < curves["usage"] <= 1
    assert 0.5 < fsq.rms() < 0.8

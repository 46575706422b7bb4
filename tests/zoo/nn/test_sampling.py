"""Draws against brute force: distributions, filters, ranges."""

import pytest
import torch

from zoo.errors import ConfigError
from zoo.nn.sampling import check_guidance, check_prefix, draw, guide
from zoo.rng import Rng

N = 40_000
U = Rng(0, range(N)).uniform()


def histogram(logits, **settings):
    codes = draw(logits.expand(N, -1), U, **settings)
    assert codes.dtype == torch.int64
    return torch.bincount(codes, minlength=logits.shape[-1]).double() / N


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_frequencies_follow_the_softmax(temperature):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.2])
    expected = (logits.double() / temperature).softmax(0)
    assert (histogram(logits, temperature=temperature) - expected).abs().max() < 0.01


def test_temperature_zero_is_argmax():
    logits = torch.randn(64, 9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw(logits, U[:64], temperature=0.0), logits.argmax(-1))


def test_top_k_keeps_k_even_among_equals():
    assert (histogram(torch.zeros(6), top_k=3) > 0).sum() == 3
    logits = torch.tensor([0.0, 3.0, 1.0, 2.0])
    got = histogram(logits, top_k=2)
    expected = torch.tensor([3.0, 2.0]).double().softmax(0)
    assert got[0] == 0
    assert got[2] == 0
    assert (got[[1, 3]] - expected).abs().max() < 0.01


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    p = torch.tensor([0.1, 0.5, 0.15, 0.25])
    got = histogram(p.log(), top_p=0.7)  # 0.5 + 0.25 reaches 0.7
    assert got[0] == 0
    assert got[2] == 0
    assert (got[[1, 3]] - torch.tensor([2 / 3, 1 / 3])).abs().max() < 0.01
    assert torch.equal(histogram(p.log(), top_p=0.4) > 0, torch.tensor([False, True, False, False]))
    assert torch.equal(histogram(p.log(), top_p=1.0), histogram(p.log()))


def test_top_p_counts_after_top_k():
    p = torch.tensor([0.4, 0.3, 0.2, 0.1])
    assert torch.equal(histogram(p.log(), top_k=2, top_p=0.6) > 0, torch.tensor([True, True, False, False]))
    assert torch.equal(histogram(p.log(), top_k=2, top_p=0.5) > 0, torch.tensor([True, False, False, False]))


def test_excluded_codes_are_never_drawn_at_the_ends_of_u():
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, float("-inf")]] * 2)
    ends = torch.tensor([2.0**-24, 1 - 2.0**-24])
    assert draw(logits, ends).tolist() == [1, 2]


def test_rows_are_independent_and_half_precision_is_taken():
    logits = torch.randn(8, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    whole = draw(logits, U[:8], top_p=0.9)
    assert torch.equal(whole, torch.cat([draw(logits[i : i + 1], U[i : i + 1], top_p=0.9) for i in range(8)]))


@pytest.mark.parametrize(
    "bad", [{"temperature": -0.1}, {"temperature": float("nan")}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}]
)
def test_ranges_are_checked(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        draw(torch.zeros(1, 4), U[:1], **bad)


def test_guidance():
    cond, null = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(3))
    both = torch.cat([cond, null])
    torch.testing.assert_close(guide(both, 3.0), null + 3 * (cond - null))
    assert torch.equal(guide(both, 0.0), null)
    assert torch.equal(guide(both, 1.0), cond)
    check_guidance(1.0, 0.0)
    check_guidance(3.0, 0.1)
    with pytest.raises(ConfigError, match="cond_drop"):
        check_guidance(3.0, 0.0)


def test_prefix():
    assert check_prefix(torch.tensor([[1, 2, -1], [0, -1, -1]]), 2, 3, 4) == 1
    assert check_prefix(torch.full((2, 3), -1), 2, 3, 4) == 0
    for bad in ([[-1, 2, -1]], [[4, -1, -1]], [[-2, -1, -1]], [[1, 2]]):
        with pytest.raises(ConfigError, match="prefix"):
            check_prefix(torch.tensor(bad), 1, 3, 4)

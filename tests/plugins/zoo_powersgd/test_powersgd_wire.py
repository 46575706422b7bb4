"""1-6-9 against its definition, in float64 (check 13 of the paper's numbers)."""

import numpy as np
import pytest
import torch
from powersgd_fakes import Exchange, Room

from zoo_powersgd import wire

ALL = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)


def defined(code: int) -> float:
    """Return the value of a code by the definition: sign, 6 bits of exponent with bias 59, 9 of significand."""
    sign = -1.0 if code < 0 else 1.0
    exponent, significand = (code & 0x7FFF) >> 9, code & 0x1FF
    if exponent == 63:
        return float("nan") if significand else sign * float("inf")
    if exponent == 0:
        return sign * significand / 512 * 2.0 ** (1 - 59)
    return sign * (1 + significand / 512) * 2.0 ** (exponent - 59)


VALUES = np.array([defined(code) for code in range(63 << 9)])
"""Every value that is neither negative nor infinite, in order."""


def nearest(x: np.ndarray) -> np.ndarray:
    """Return the nearest value of the format, ties to an even code, in float64; from half a step above: infinite."""
    table = np.append(VALUES, 16.0)
    size = np.abs(x)
    above = np.clip(np.searchsorted(table, size), 1, len(table) - 1)
    low, high = table[above - 1], table[above]
    up = (size - low > high - size) | ((size - low == high - size) & (above % 2 == 0))
    value = np.where(up, high, low)
    value[(value >= 16) | (size >= 16)] = np.inf
    return np.copysign(value, x)


def test_every_code_has_the_value_of_the_definition() -> None:
    expected = torch.tensor([defined(int(code)) for code in ALL], dtype=torch.float64)
    assert torch.equal(wire.decode(ALL).double().nan_to_num(12345.0), expected.nan_to_num(12345.0))
    zeros = wire.decode(torch.tensor([0, -(1 << 15)], dtype=torch.int16))
    assert zeros.signbit().tolist() == [False, True]


def test_every_value_comes_back() -> None:
    values = wire.decode(ALL)
    known = ~values.isnan()
    assert torch.equal(wire.encode(values[known]), ALL[known])
    assert wire.decode(wire.encode(torch.tensor([float("nan"), -float("nan")]))).isnan().all()


def test_the_numbers_of_the_paper() -> None:
    assert VALUES.max() == wire.LARGEST == 15.984375
    assert defined(1 << 9) == wire.SMALLEST_NORMAL == 2.0**-58
    assert defined(1) == wire.STEP == 2.0**-67
    assert wire.encode(torch.zeros(3)).element_size() == 2


def test_rounding_is_to_nearest_ties_to_even() -> None:
    draw = np.random.default_rng(0)
    scattered = draw.standard_normal(200_000) * 2.0 ** draw.uniform(-72, 5, 200_000)
    between = (VALUES[1:] + VALUES[:-1]) / 2  # exact in fp32: one bit more than the format has
    x = np.concatenate([scattered, between, -between, VALUES, [15.992187, 15.9921875, 16.0, 1e30, np.inf, -np.inf]])
    x = x.astype(np.float32)
    got = wire.decode(wire.encode(torch.from_numpy(x))).double().numpy()
    np.testing.assert_array_equal(got, nearest(x.astype(np.float64)))


def test_nothing_of_normal_size_underflows_or_loses_more_than_half_a_step() -> None:
    draw = np.random.default_rng(1)
    x = torch.from_numpy((2.0 ** draw.uniform(-58, 3.99, 100_000)).astype(np.float32))
    got = wire.decode(wire.encode(x))
    assert float(((got.double() - x.double()).abs() / x.double()).max()) <= 2.0**-10
    assert (got > 0).all()


def test_clamping_keeps_the_sign_and_comes_before_overflow() -> None:
    x = torch.tensor([float("inf"), -float("inf"), 17.0, -1e30, 15.995, 3.0, float("nan")])
    clamped = wire.clamp(x)
    assert clamped[:6].tolist() == [15.984375, -15.984375, 15.984375, -15.984375, 15.984375, 3.0]
    assert clamped[6].isnan()
    assert wire.decode(wire.encode(clamped))[:6].isfinite().all()
    assert wire.decode(wire.encode(x))[4].isinf()  # without it, this one would be lost


def test_stored_values_are_half_the_size_and_rounding_keeps_the_type() -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    kept = x.clone()
    stored = wire.OneSixNine.pack(x)
    assert stored.element_size() == 2
    assert torch.equal(wire.OneSixNine.unpack(stored, x), wire.OneSixNine.round_(x))
    assert x.dtype == torch.float64
    assert 0 < float((x - kept).abs().max()) <= 2.0**-10 * float(kept.abs().max())
    full = wire.Full.pack(x)
    x.zero_()
    assert full.abs().sum() > 0


@pytest.mark.parametrize("numel", [2, 7, 12])
def test_a_sum_over_ranks_rounds_once_before_and_once_after(numel: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    room = Room(3)
    draw = torch.Generator().manual_seed(0)
    mine = [torch.randn(numel, generator=draw) for _ in range(3)]
    mine[1][0] = 14.0
    mine[2][0] = 9.0  # the sum is too large
    mine[0][1], mine[1][1] = float("inf"), -100.0  # and these are by themselves: they cancel
    exchanges = [Exchange(room, rank) for rank in range(3)]
    with ThreadPoolExecutor(3) as pool:
        sums = list(pool.map(lambda r: wire.OneSixNine.sum(mine[r].clone(), exchanges[r]), range(3)))
        means = list(pool.map(lambda r: wire.OneSixNine.sum(mine[r].clone(), exchanges[r], divide=3), range(3)))
    rounded = [nearest(x.double().numpy().clip(-15.984375, 15.984375)) for x in mine]
    total = (rounded[0].astype(np.float32) + rounded[1].astype(np.float32)) + rounded[2].astype(np.float32)
    expected = nearest(total.astype(np.float64).clip(-15.984375, 15.984375))
    assert expected[0] == 15.984375
    assert expected[1] == rounded[2][1]
    np.testing.assert_array_equal(sums[0].numpy(), expected)
    np.testing.assert_array_equal(means[0].numpy(), nearest((total / np.float32(3)).astype(np.float64)))
    for other in (1, 2):
        assert torch.equal(sums[0], sums[other])
        assert torch.equal(means[0], means[other])
    padded = -(-numel // 3) * 3
    assert exchanges[0].sent == 2 * 2 * padded  # two sums, two bytes a value

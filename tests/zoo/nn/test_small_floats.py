"""Every code of both formats against the definition, in float64. (Rounding of 1-6-9: tests/plugins/zoo_powersgd.)"""

import numpy as np
import pytest
import torch

from zoo.nn.small_floats import ONE_SIX_NINE, ZERO_SIX_TEN, Format

ALL = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
FORMATS = {"1-6-9": (ONE_SIX_NINE, 1, 9), "0-6-10": (ZERO_SIX_TEN, 0, 10)}


@pytest.fixture(params=FORMATS)
def case(request):
    return FORMATS[request.param]


def defined(code, sign_bits, significand):
    """The value of a code of 16 bits by the definition; both biases are 59."""
    bits = code & 0xFFFF
    sign = -1.0 if sign_bits and bits >> 15 else 1.0
    exponent, fraction = (bits >> significand) & 63, bits & ((1 << significand) - 1)
    if exponent == 63:
        return float("nan") if fraction else sign * float("inf")
    if exponent == 0:
        return sign * fraction / (1 << significand) * 2.0**-58
    return sign * (1 + fraction / (1 << significand)) * 2.0 ** (exponent - 59)


def test_every_code_has_the_value_of_the_definition_and_comes_back(case):
    fmt, *bits = case
    expected = torch.tensor([defined(int(code), *bits) for code in ALL], dtype=torch.float64)
    values = fmt.decode(ALL)
    assert torch.equal(values.double().nan_to_num(12345.0), expected.nan_to_num(12345.0))
    known = ~values.isnan()
    assert torch.equal(fmt.encode(values[known]), ALL[known])
    assert fmt.decode(fmt.encode(torch.tensor([float("nan"), -float("nan")]))).isnan().all()


def test_limits(case):
    fmt, _, significand = case
    values = fmt.decode(ALL)
    assert float(values[values.isfinite()].max()) == fmt.largest
    assert float(values[values > 0].min()) == fmt.step == 2.0 ** (-58 - significand)
    assert defined(1 << significand, *case[1:]) == fmt.smallest_normal == 2.0**-58
    assert fmt.largest < 16


def test_what_has_no_sign_rounds_to_nearest_even_and_takes_negative_numbers_for_zero():
    table = np.array([defined(code, 0, 10) for code in range(63 << 10)] + [16.0])
    draw = np.random.default_rng(0)
    between = (table[1:] + table[:-1]) / 2  # exact in fp32
    x = np.concatenate([draw.random(200_000) * 2.0 ** draw.uniform(-72, 4, 200_000), between, table, [np.inf]])
    x = x.astype(np.float32).astype(np.float64)
    above = np.clip(np.searchsorted(table, x), 1, len(table) - 1)
    low, high = table[above - 1], table[above]
    up = (x - low > high - x) | ((x - low == high - x) & (above % 2 == 0))
    expected = np.where(up, high, low)
    expected[expected >= 16] = np.inf
    got = ZERO_SIX_TEN.decode(ZERO_SIX_TEN.encode(torch.from_numpy(x).float())).double().numpy()
    np.testing.assert_array_equal(got, expected)
    assert ZERO_SIX_TEN.encode(torch.tensor([-1.0, -0.0, -float("inf")])).tolist() == [0, 0, 0]
    assert ZERO_SIX_TEN.clamp(torch.tensor([-1.0, 20.0])).tolist() == [0.0, 15.9921875]


def test_a_large_tensor_is_converted_as_its_parts_are(case):
    fmt = case[0]
    x = torch.randn(3, 50_001, generator=torch.Generator().manual_seed(0)).abs()
    codes = fmt.encode(x)
    assert codes.shape == x.shape
    assert torch.equal(codes[2], fmt.encode(x[2].clone()))
    assert torch.equal(fmt.decode(codes), fmt.round_(x.clone()))


def test_bits_that_are_not_16_are_refused():
    with pytest.raises(ValueError, match="1-6-10 are not 16 bits"):
        Format(sign=True, exponent=6, significand=10, bias=59)

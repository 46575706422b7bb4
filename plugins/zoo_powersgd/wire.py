"""Numbers of 16 bits with a wide exponent, 1-6-9, and sums of them between ranks.

One sign bit, six of exponent, nine of significand. The largest value is "slightly less than 16" ([1] appendix E), so
the exponent's bias is 59 and its top code is kept for infinity and NaN, as IEEE formats do: normal values from 2^-58 to
15.984375, subnormal ones in steps of 2^-67. Rounding is to nearest, ties to even, and what rounds to 16 or more is
infinite.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, appendices D and E
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from zoo_powersgd.exchange import Exchange

LARGEST = 15.984375
SMALLEST_NORMAL = 2.0**-58
STEP = 2.0**-67
"""Distance between subnormal values."""

_INFINITY = 63 << 9  # as a code
_DROPPED = 14  # bits of an fp32 significand that do not fit
_SHIFT = (127 - 59) << 9  # between the two biases, in units of a code
_GRID = 2.0**-44  # fp32 values from here to its double are STEP apart, so adding it rounds to whole steps
_GRID_BITS = (127 - 44) << 23
_CHUNK = 1 << 15  # values converted at a time on a CPU: what lies between stays in its cache


def encode(x: Tensor) -> Tensor:
    """Return the codes of fp32 values, int16 of the same shape; other types are made fp32 first."""
    return _by_chunks(_encode, x.float().contiguous(), torch.int16)


def decode(codes: Tensor) -> Tensor:
    """Return the fp32 values of codes; every one is exact."""
    return _by_chunks(_decode, codes.contiguous(), torch.float32)


def round_(x: Tensor) -> Tensor:
    """Put the format's nearest values into a floating tensor."""
    return x.copy_(_by_chunks(lambda part: _decode(_encode(part.float())), x.contiguous(), torch.float32))


def _by_chunks(convert: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `convert` of a contiguous tensor, element by element, in this type."""
    if x.device.type != "cpu" or x.numel() <= _CHUNK:
        return convert(x)
    out = torch.empty_like(x, dtype=dtype)
    for source, target in zip(x.view(-1).split(_CHUNK), out.view(-1).split(_CHUNK), strict=True):
        target.copy_(convert(source))
    return out


def _encode(x: Tensor) -> Tensor:
    bits = x.view(torch.int32)
    size = bits & 0x7FFFFFFF
    # Round half to even: add just under a half, and the last kept bit; a carry runs into the exponent, as it must.
    code = (size >> _DROPPED).bitwise_and_(1).add_(size).add_(0x1FFF - (_SHIFT << _DROPPED))
    code = code.bitwise_right_shift_(_DROPPED).clamp_(max=_INFINITY)
    steps = size.view(torch.float32).add(_GRID).view(torch.int32).sub_(_GRID_BITS)
    code = torch.where(size < (127 - 58) << 23, steps, code)
    code.add_(size > 0x7F800000, alpha=1 << 8)  # NaN, until here infinite
    return code.add_(bits >> 31, alpha=1 << 15).to(torch.int16)  # the shift gives -1 for a negative number


def _decode(codes: Tensor) -> Tensor:
    wide = codes.int()
    size = wide & 0x7FFF
    bits = (size + _SHIFT).bitwise_left_shift_(_DROPPED)
    bits.add_(size >= _INFINITY, alpha=(255 - 63 - 68) << 23)
    steps = (size + _GRID_BITS).view(torch.float32).sub_(_GRID)
    value = torch.where(size < 1 << 9, steps, bits.view(torch.float32))
    sign = wide.bitwise_and_(1 << 15).bitwise_left_shift_(16)
    return value.view(torch.int32).bitwise_or_(sign).view(torch.float32)


def clamp(x: Tensor) -> Tensor:
    """Bring what is too large, infinities too, to the largest value, keeping the sign; NaN stays."""
    return x.clamp(-LARGEST, LARGEST)


class OneSixNine:
    """Stores, rounds and sums in 1-6-9."""

    @staticmethod
    def pack(x: Tensor) -> Tensor:
        """Return what is stored, half of fp32's size."""
        return encode(x)

    @staticmethod
    def unpack(stored: Tensor, like: Tensor) -> Tensor:
        """Return stored values in the type of `like`."""
        return decode(stored).to(like.dtype)

    @staticmethod
    def round_(x: Tensor) -> Tensor:
        """Put the format's nearest values into `x`."""
        return round_(x)

    @staticmethod
    def sum(flat: Tensor, exchange: Exchange, *, divide: int = 1) -> Tensor:
        """Return sum / divide of the ranks' flat tensors, sent as 16 bits; the same on each rank to the bit.

        Each rank sums its share of the values in fp32, of all ranks' codes in the ranks' order, and hands out its
        codes: one rounding before and one after. What is too large is clamped to the largest value.
        """
        share = -(-len(flat) // exchange.size)
        padded = torch.nn.functional.pad(flat, (0, share * exchange.size - len(flat)))
        rows = exchange.swap(encode(clamp(padded)).view(exchange.size, share))
        total = decode(rows).sum(0) / divide
        codes = exchange.collect(encode(clamp(total)))
        return decode(codes).view(-1)[: len(flat)].to(flat.dtype)


class Full:
    """The same in the gradients' own type: nothing is rounded and nothing clamped."""

    @staticmethod
    def pack(x: Tensor) -> Tensor:
        """Return what is stored: the values, in memory of their own."""
        return x.clone()

    @staticmethod
    def unpack(stored: Tensor, like: Tensor) -> Tensor:
        """Return stored values."""
        return stored

    @staticmethod
    def round_(x: Tensor) -> Tensor:
        """Leave `x` as it is."""
        return x

    @staticmethod
    def sum(flat: Tensor, exchange: Exchange, *, divide: int = 1) -> Tensor:
        """Return sum / divide of the ranks' flat tensors; the same on each rank to the bit."""
        return exchange.sum_(flat).div_(divide)


FORMATS: dict[str, type[OneSixNine] | type[Full]] = {"1-6-9": OneSixNine, "full": Full}

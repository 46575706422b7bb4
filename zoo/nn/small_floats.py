"""Floating-point formats of 16 bits that torch has no type for: 1-6-9 and 0-6-10.

DALL-E keeps what needs a wide range in 16 bits by six bits of exponent instead of fp16's five ([1] appendix D): 1-6-9
(sign, exponent, significand) for Adam's running mean and for error feedback, 0-6-10 for Adam's running variance, which
has no sign. A number is `(1 + significand / 2^s) * 2^(exponent - bias)`, with subnormal numbers below and the top
exponent kept for infinity and NaN, as IEEE formats do.

The biases. [1] says of 1-6-9 that its largest value is "slightly less than 16" (appendix E), so 59: normal values from
2^-58 to 15.984375, subnormal ones in steps of 2^-67. Of 0-6-10 it says no number, but that the variance is clipped to
5, which biases up to 61 can hold. Here it is 59 as well: normal values from 2^-58 = 3.5e-18 to 15.9921875, subnormal
ones in steps of 2^-68. What is lost at the lower end is the variance of gradients under 2^-29 = 1.9e-9, and Adam adds
eps = 1e-8 to its root: half the smallest step has a root of 4e-11, 0.4 % of eps. Biases of 60 and 61 would win one
octave and two of numbers that eps hides anyway; what is of use, a variance of 1e-12 and of 1e-16 (gradients of 1e-6
and 1e-8), lies 18 octaves and 5 above the smallest normal value.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, appendices D and E
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_CHUNK = 1 << 15  # values converted at a time on a CPU: what lies between stays in its cache


class Format:
    """A format of 16 bits; codes are int16, whose bits are, from the highest, sign, exponent and significand.

    Args:
        sign: a bit for it; without, what is negative is encoded as zero.
        exponent, significand: bits; all are 16.
        bias: of the exponent.
    """

    def __init__(self, *, sign: bool, exponent: int, significand: int, bias: int) -> None:
        if sign + exponent + significand != 16:
            raise ValueError(f"{int(sign)}-{exponent}-{significand} are not 16 bits")
        self.sign = sign
        self.scale = 2.0 ** (bias - 127)
        """A value times this, in fp32, has the bits of its code: the same exponent, and subnormal where that is."""
        self.smallest_normal = 2.0 ** (1 - bias)
        self.step = 2.0 ** (1 - bias - significand)
        """Distance between subnormal values."""
        self.largest = (2.0 - 2.0**-significand) * 2.0 ** ((1 << exponent) - 2 - bias)
        self._significand = significand
        self._dropped = 23 - significand  # bits of an fp32 significand that do not fit
        self._infinity = ((1 << exponent) - 1) << significand  # as a code
        self._shift = (127 - bias) << significand  # between the two biases, in units of a code
        self._size = 0x7FFF if sign else 0xFFFF
        # fp32 values from here to its double are `step` apart, so adding it rounds to whole steps.
        self._grid = 2.0 ** (24 - bias - significand)
        self._grid_bits = (127 + 24 - bias - significand) << 23
        self._normal_bits = (127 + 1 - bias) << 23

    def encode(self, x: Tensor) -> Tensor:
        """Return the nearest codes, ties to even, int16 of x's shape; x is made fp32 first.

        What rounds to more than `largest` is infinite; NaN stays.
        """
        return _by_chunks(self._encode, x.float().contiguous(), torch.int16)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the fp32 values of codes; every one is exact."""
        return _by_chunks(self._decode, codes.contiguous(), torch.float32)

    def round_(self, x: Tensor) -> Tensor:
        """Put the format's nearest values into a floating tensor."""
        rounded = _by_chunks(lambda part: self._decode(self._encode(part.float())), x.contiguous(), torch.float32)
        return x.copy_(rounded)

    def clamp(self, x: Tensor) -> Tensor:
        """Bring what is too large, infinities too, to the largest value, keeping the sign; NaN stays."""
        return x.clamp(-self.largest if self.sign else 0.0, self.largest)

    def _encode(self, x: Tensor) -> Tensor:
        bits = (x if self.sign else x.clamp(min=0.0)).view(torch.int32)
        size = bits & 0x7FFFFFFF
        # Round half to even: add just under a half, and the last kept bit; a carry runs into the exponent, as it must.
        under = (1 << (self._dropped - 1)) - 1
        code = (size >> self._dropped).bitwise_and_(1).add_(size).add_(under - (self._shift << self._dropped))
        code = code.bitwise_right_shift_(self._dropped).clamp_(max=self._infinity)
        steps = size.view(torch.float32).add(self._grid).view(torch.int32).sub_(self._grid_bits)
        code = torch.where(size < self._normal_bits, steps, code)
        code.add_(size > 0x7F800000, alpha=1 << (self._significand - 1))  # NaN, until here infinite
        if self.sign:
            code.add_(bits >> 31, alpha=1 << 15)  # the shift gives -1 for a negative number
        return code.to(torch.int16)

    def _decode(self, codes: Tensor) -> Tensor:
        wide = codes.int()
        size = wide & self._size
        bits = (size + self._shift).bitwise_left_shift_(self._dropped)
        top = (self._infinity + self._shift) >> self._significand  # exponent that fp32 gives the top code so far
        bits.add_(size >= self._infinity, alpha=(255 - top) << 23)
        steps = (size + self._grid_bits).view(torch.float32).sub_(self._grid)
        value = torch.where(size < 1 << self._significand, steps, bits.view(torch.float32))
        if not self.sign:
            return value
        sign = wide.bitwise_and_(1 << 15).bitwise_left_shift_(16)
        return value.view(torch.int32).bitwise_or_(sign).view(torch.float32)


def _by_chunks(convert: Callable[[Tensor], Tensor], x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `convert` of a contiguous tensor, element by element, in this type."""
    if x.device.type != "cpu" or x.numel() <= _CHUNK:
        return convert(x)
    out = torch.empty_like(x, dtype=dtype)
    for source, target in zip(x.view(-1).split(_CHUNK), out.view(-1).split(_CHUNK), strict=True):
        target.copy_(convert(source))
    return out


ONE_SIX_NINE = Format(sign=True, exponent=6, significand=9, bias=59)
ZERO_SIX_TEN = Format(sign=False, exponent=6, significand=10, bias=59)

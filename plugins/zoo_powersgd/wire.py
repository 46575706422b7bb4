"""Sums of gradients between ranks in numbers of 16 bits with a wide exponent, 1-6-9, or as they are.

The format is `zoo.nn.small_floats`'s: its largest value is "slightly less than 16" ([1] appendix E), and what is sent
is clamped to it, keeping the sign.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, appendices D and E
"""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.nn.small_floats import ONE_SIX_NINE
from zoo_powersgd.exchange import Exchange

LARGEST, SMALLEST_NORMAL, STEP = ONE_SIX_NINE.largest, ONE_SIX_NINE.smallest_normal, ONE_SIX_NINE.step
encode, decode, round_, clamp = ONE_SIX_NINE.encode, ONE_SIX_NINE.decode, ONE_SIX_NINE.round_, ONE_SIX_NINE.clamp


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

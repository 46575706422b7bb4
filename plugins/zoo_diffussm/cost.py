"""What DiffuSSM and DiT cost, layer by layer as `zoo_diffussm` builds them. Imports no torch.

A sample is one picture with a caption of full length. Letters: B batch, D width, M positions a place, L positions,
J = L/M places and prefix tokens, N state.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zoo.cost import Cost, Tally, bound

if TYPE_CHECKING:
    from zoo_diffussm.configs import DiffuSsm, DiT

WAVES = 256
"""Width of the time embedding's waves in DiT's code."""
KEPT = 25
"""Values of a state that its sampling in time keeps."""


def diffussm(c: DiffuSsm, batch: int) -> Cost:
    """Return DiffuSSM's cost, of one sample of a batch."""
    t = Tally()
    places = _start(t, c)
    with t.at("stack"):
        for i in range(c.depth):
            with t.at("blocks"), t.residual(i, places * c.width):
                _ssm_block(t, c, places, batch)
        for i in range(c.depth // 2 if c.skips == "long" else 0):
            with t.at("merge"):
                t.linear(str(i), 2 * c.width, c.width, places)
    return _end(t, c, places)


def dit(c: DiT) -> Cost:
    """Return DiT's cost."""
    t = Tally()
    places = _start(t, c)
    with t.at("stack", "blocks"):
        for i in range(c.depth):
            with t.residual(2 * i, places * c.width):
                _attention(t, c, places)
            with t.residual(2 * i + 1, places * c.width):
                _mlp(t, c, places)
    return _end(t, c, places)


def _places(c: DiffuSsm | DiT) -> int:
    """Return J of the picture alone."""
    assert c.size is not None
    return c.size[0] * c.size[1] // c.patch**2 // c.shortening


def _start(t: Tally, c: DiffuSsm | DiT) -> int:
    """What stands before the blocks; return J."""
    told = {"text": ("text_width", "text_length"), "label": ("classes",)}.get(c.reads, ())
    bound(c, "channels", "size", *told)
    assert c.channels is not None
    for name in ("time", "level") if c.low else ("time",):
        with t.at(name):
            t.linear("first", WAVES, c.width, 1)
            t.keep(c.width)
            t.linear("second", c.width, c.width, 1)
    tokens = 0
    if c.reads == "text":
        assert c.text_width is not None
        assert c.text_length is not None
        _pool(t, c.text_width, c.text_length, c.width)
        if c.prefix:
            tokens = c.text_length
            t.linear("prefix", c.text_width, c.width, tokens)
            t.keep(raw=tokens + _places(c))  # which places are read
    if c.reads == "label":
        if c.prefix:
            tokens = 1
            t.linear("prefix", c.width, c.width, 1)
        t.embedding("label", (c.classes or 0) + 1, c.width, 1)
    places = _places(c)
    with t.at("input"):
        if c.positions == "sincos":
            t.weight("positions", places, c.width)
        read = c.channels * (2 if c.low else 1)
        t.linear("project", read * c.patch**2 * c.shortening, c.width, places)
    for _ in range(2):  # the condition before and after its activation, which every block reads
        t.keep(c.width)
    return places + tokens


def _end(t: Tally, c: DiffuSsm | DiT, read: int) -> Cost:
    """What stands behind the blocks, which have made `read` places; those of the picture are a part of them."""
    places, channels = _places(c), (c.channels or 0) * (2 if c.variance == "learned" else 1)
    with t.at("head"):
        t.linear("modulation", c.width, 2 * c.width, 1, keep=False)
        _modulated(t, c.width, places)
        t.keep(stream=(read - places) * c.width)
        t.linear("project", c.width, channels * c.patch**2 * c.shortening, places)
    values = places * (c.channels or 0) * c.patch**2 * c.shortening
    t.keep(wide=values)  # the errors
    if c.variance == "learned":
        for _ in range(17):  # as many as the variational term reads again, beside where it takes which
            t.keep(wide=values)
        t.keep(raw=3 * values)
    return t.cost()


def _pool(t: Tally, width: int, tokens: int, out: int) -> None:
    """`zoo.nn.conditioning.Pool`."""
    with t.at("pool"):
        t.weight("position", 1, width)
        t.norm("norm", width, tokens)
        t.keep(wide=tokens + 1)  # which tokens the mean is of, and how many
        t.linear("query", width, width, 1)
        t.linear("keys", width, 2 * width, tokens + 1)
        t.work(4 * width * (tokens + 1))
        t.keep((1 + 2 * (tokens + 1)) * width, wide=4 + tokens + 1)
        t.linear("project", width, out, 1)
        t.norm("after", out, 1)


def _modulated(t: Tally, width: int, places: int) -> None:
    """A norm without parameters, scaled and shifted: its input and output, its statistics, and the scale."""
    t.keep(places * width, stream=places * width, wide=2 * places)
    t.keep(width)


def _ssm_block(t: Tally, c: DiffuSsm, places: int, batch: int) -> None:
    d, m, length = c.width, c.shortening, places * c.shortening
    t.linear("modulation", d, 2 * d, 1, keep=False)
    _modulated(t, d, places)
    t.linear("shared", d, d, places)
    t.keep(places * d)  # what GELU reads
    t.linear("up", d, m * d, places)
    t.keep(length * d)
    _s4d(t, c, length, batch)
    for k in range(m):
        with t.at("down"):
            t.linear(str(k), 2 * d, 2 * d // m, places)
        t.keep(places * 2 * d // m)
    t.linear("gate", d, 2 * d, places, keep=False)
    t.linear("mix", 2 * d, 2 * d, places)
    for _ in range(2):
        t.keep(2 * places * d)  # what GELU reads
        t.keep(2 * places * d)  # and makes: the product's factors
    t.linear("out", 2 * d, d, places)


def _s4d(t: Tally, c: DiffuSsm, length: int, batch: int) -> None:
    """Two systems of every channel. Their responses, and what those are made of, are the whole batch's.

    Transforms are no products, and not counted; they are some 15 L log2(2L) operations a channel and direction.
    """
    d, half = c.width, c.state // 2
    fine = 2 ** round(math.log2(length) / 2)  # `zoo.nn.vandermonde` multiplies [coarse,N] by [N,fine]
    coarse = math.ceil(length / fine)
    names = ("causal", "reverse") if c.directions == "both" else ("first.causal", "second.causal")
    for name in names:
        with t.at("ssm", name):
            t.weight("log_dt", d)
            for matrix in ("log_A_real", "A_imag"):
                t.weight(matrix, d, half)
            for pairs in ("B", "C"):
                t.weight(pairs, d, half, 2)
            t.weight("D", d)
        t.work(math.ceil(2 * d * coarse * fine * c.state / batch))
        t.keep(wide=math.ceil(d * (length + KEPT * half) / batch))
    t.keep(length * d)


def _attention(t: Tally, c: DiT, places: int) -> None:
    d = c.width
    t.linear("modulation", d, 3 * d, 1, keep=False)
    _modulated(t, d, places)
    t.linear("qkv", d, 3 * d, places, stacked=3)
    t.attention(d, c.heads, places, places**2)
    t.linear("out", d, d, places)
    t.keep(places * d + 3 * d)  # what the gate multiplies; the gate, shift and scale are one tensor


def _mlp(t: Tally, c: DiT, places: int) -> None:
    d = c.width
    t.linear("modulation", d, 3 * d, 1, keep=False)
    _modulated(t, d, places)
    t.linear("up", d, c.hidden * d, places)
    t.keep(c.hidden * places * d)  # what GELU reads
    t.linear("down", c.hidden * d, d, places)
    t.keep(places * d + 3 * d)  # what the gate multiplies; the gate, shift and scale are one tensor

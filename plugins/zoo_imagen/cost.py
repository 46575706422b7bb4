"""What Imagen's denoisers cost, layer by layer as `zoo_imagen` builds them. Imports no torch.

A sample is one picture with a caption of full length. Letters: T text tokens, D width of the text.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zoo.cost import Cost, Tally, bound

if TYPE_CHECKING:
    from zoo_imagen.configs import EfficientUNet, UNet


def unet(c: UNet) -> Cost:
    """Return the base model's cost."""
    t = Tally()
    places, text = _start(t, c)
    with t.at("net"):
        _down_and_up(t, c, places, text)
    return _end(t, c, places)


def efficient_unet(c: EfficientUNet) -> Cost:
    """Return the cost of super-resolution, of whole pictures or of the crops it is trained on."""
    t = Tally()
    places, text = _start(t, c)
    with t.at("net"):
        _levels(t, c, places, text)
    return _end(t, c, places)


def _start(t: Tally, c: UNet | EfficientUNet) -> tuple[int, int | None]:
    """What stands before the network; return the places of z, and the width of the text that attention reads."""
    text_fields = {"text": ("text_width", "text_length"), "label": ("classes",)}.get(c.reads, ())
    bound(c, "channels", "size", *text_fields)
    assert c.channels is not None
    assert c.size is not None
    crop = getattr(c, "crop", None) or math.inf
    places = int(min(crop, c.size[0]) * min(crop, c.size[1]))
    _time(t, "time", c)
    if c.low:
        _time(t, "level", c)
    text = None
    if c.reads == "text":
        text = _text(t, c)
    if c.reads == "label":
        t.embedding("label", (c.classes or 0) + 1, c.time_width, 1)
    for _ in range(2):  # the activation's input and output, which every block reads
        t.keep(c.time_width)
    return places, text


def _end(t: Tally, c: UNet | EfficientUNet, places: int) -> Cost:
    values = places * (c.channels or 0)
    t.keep(wide=values)  # the errors
    if c.variance == "learned":
        for _ in range(17):  # as many as the variational term reads again, beside where it takes which
            t.keep(wide=values)
        t.keep(raw=3 * values)
    return t.cost()


def _time(t: Tally, name: str, c: UNet | EfficientUNet) -> None:
    with t.at(name):
        t.linear("first", c.width, c.time_width, 1)
        t.keep(c.time_width)
        t.linear("second", c.time_width, c.time_width, 1)


def _text(t: Tally, c: UNet | EfficientUNet) -> int:
    """The pooling, and the projection before attention; return the text's width there."""
    assert c.text_width is not None
    assert c.text_length is not None
    width, tokens = c.text_width, c.text_length
    with t.at("pool"):
        t.weight("position", 1, width)
        t.norm("norm", width, tokens)
        t.keep(wide=tokens + 1)  # which tokens the mean is of, and how many
        t.linear("query", width, width, 1)
        t.linear("keys", width, 2 * width, tokens + 1)
        _attend(t, width, c.pool_heads, 1, tokens + 1)
        t.linear("project", width, c.time_width, 1)
        t.norm("after", c.time_width, 1)
    if c.text_channels not in (None, width):
        assert c.text_channels is not None
        t.linear("text", width, c.text_channels, tokens, keep=False)
        if c.text_norm == "layer":
            t.keep(stream=tokens * c.text_channels)  # what every attention's norm reads
        return c.text_channels
    return width


def _down_and_up(t: Tally, c: UNet, places: int, text: int | None) -> None:
    n_in = (c.channels or 0) * (2 if c.low else 1)
    _conv(t, "input", n_in, c.width, places)
    width, skips, layer = c.width, [c.width], 0
    for i, n in enumerate(c.widths):
        for _ in range(c.blocks):
            with t.at("down", layer):
                _layer(t, c, width, n, places // 4**i, 2**i in c.attention, text)
            width, layer = n, layer + 1
            skips.append(n)
        if i < len(c.widths) - 1:
            with t.at("down", layer):
                _block(t, c, n, n, places // 4**i, places // 4 ** (i + 1))
            layer += 1
            skips.append(n)
    coarse = places // 4 ** (len(c.widths) - 1)
    for i, attends in enumerate((True, False)):
        with t.at("middle", i):
            _layer(t, c, width, width, coarse, attends, text)
    layer = 0
    for i, n in reversed(list(enumerate(c.widths))):
        for _ in range(c.blocks + 1):
            with t.at("up", layer):
                _layer(t, c, width + skips.pop(), n, places // 4**i, 2**i in c.attention, text)
            width, layer = n, layer + 1
        if i:
            with t.at("up", layer):
                _block(t, c, n, n, places // 4**i, places // 4 ** (i - 1))
            layer += 1
    _out(t, c, width, places)


def _levels(t: Tally, c: EfficientUNet, places: int, text: int | None) -> None:
    n_in = (c.channels or 0) * (2 if c.low else 1)
    _conv(t, "input", n_in, c.width, places)
    widths = (c.width, *c.widths)
    for i, width in enumerate(c.widths):
        with t.at("shrink"):
            _conv(t, i, widths[i], width, places // 4 ** (i + 1), reads=places // 4**i)
    for i in range(len(c.widths)):
        with t.at("down", i):
            _level(t, c, i, places // 4 ** (i + 1), text)
    order = list(reversed(range(len(c.widths))))
    for place, i in enumerate(order):
        with t.at("up", place):
            _level(t, c, i, places // 4 ** (i + 1), text)
    for place, i in enumerate(order):
        with t.at("grow", place):
            _conv(t, 0, c.widths[i], widths[i], places // 4 ** (i + 1))
    _out(t, c, c.width, places)


def _level(t: Tally, c: EfficientUNet, i: int, places: int, text: int | None) -> None:
    width, kind = c.widths[i], c.attention[i]
    for j in range(c.blocks[i]):
        with t.at("blocks"):
            _residual(t, c, j, width, width, places, places, skip=True)
    if kind == "none":
        return
    inner = 2 * width
    # `text` is registered before `attention`
    if text is not None:
        _text_keys(t, c, text, inner)
    _attention(t, c, width, inner, c.heads, places, text is not None, crossed=kind == "cross")


def _layer(t: Tally, c: UNet, n_in: int, n_out: int, places: int, attends: bool, text: int | None) -> None:
    _block(t, c, n_in, n_out, places, places)
    if not attends:
        return
    _attention(t, c, n_out, n_out, n_out // c.head_width, places, text is not None, crossed=False)
    if text is not None:
        _text_keys(t, c, text, n_out)


def _block(t: Tally, c: UNet, n_in: int, n_out: int, places: int, behind: int) -> None:
    _residual(t, c, "block", n_in, n_out, places, behind, skip=n_in != n_out)


def _residual(
    t: Tally, c: UNet | EfficientUNet, name: str | int, n_in: int, n_out: int, places: int, behind: int, *, skip: bool
) -> None:
    """A residual block from so many places to those behind it; norms and convolutions keep a tensor each."""
    # The layer on a shortcut keeps the branch's input anyway.
    with t.residual(name, 0 if skip else places * n_in):
        _norm(t, "norm", n_in, places, keep=not skip)
        _conv(t, "conv", n_in, n_out, behind)
        t.linear("modulation", c.time_width, 2 * n_out, 1, keep=False)
        _norm(t, "modulated", n_out, behind)
        t.keep(wide=3 * n_out)  # one plus the scale, and what both make of the norm's gain and bias
        _conv(t, "out", n_out, n_out, behind)
    if skip:
        with t.at(name):
            t.linear("skip", n_in, n_out, places)


def _attention(
    t: Tally, c: UNet | EfficientUNet, width: int, inner: int, heads: int, places: int, reads: bool, *, crossed: bool
) -> None:
    tokens = (c.text_length or 0) if reads else 0
    with t.residual("attention", places * width + tokens * 2 * inner):
        _norm(t, "norm", width, places)
        t.linear("query", width, inner, places)
        if not crossed:
            t.linear("keys", width, 2 * inner, places, keep=False)
        _attend(t, inner, heads, places, tokens + (0 if crossed else places), masked=reads)
        t.linear("out", inner, width, places)


def _attend(t: Tally, inner: int, heads: int, queries: int, keys: int, *, masked: bool = True) -> None:
    """One softmax: queries, keys and values are kept, a number a query and head, and the mask as numbers."""
    t.work(4 * inner * queries * keys)
    t.keep((queries + 2 * keys) * inner, wide=heads * queries + (keys if masked else 0))


def _text_keys(t: Tally, c: UNet | EfficientUNet, width: int, inner: int) -> None:
    """Keys and values of the text; what layer norms read is kept once for all, and group norms turn it round."""
    tokens = c.text_length or 0
    with t.at("text"):
        with t.at("norm"):
            t.weight("weight", width)
            t.weight("bias", width)
        layered = c.text_norm == "layer"
        t.keep(stream=0 if layered else tokens * width, wide=2 * (tokens if layered else 32))
        t.linear("keys", width, 2 * inner, tokens)


def _out(t: Tally, c: UNet | EfficientUNet, width: int, places: int) -> None:
    _norm(t, "norm", width, places)
    _conv(t, "out", width, (c.channels or 0) * (2 if c.variance == "learned" else 1), places)


def _conv(t: Tally, name: str | int, n_in: int, n_out: int, places: int, *, reads: int | None = None) -> None:
    """A convolution of 3x3 places with so many places of output; it keeps as many, or `reads`, of its input."""
    with t.at(name):
        t.weight("weight", n_out, 3, 3, n_in)
        t.weight("bias", n_out)
    t.work(2 * places * 9 * n_in * n_out)
    t.keep((places if reads is None else reads) * n_in)


def _norm(t: Tally, name: str, width: int, places: int, *, keep: bool = True) -> None:
    """A group norm with its activation: it keeps what it reads, and a mean and a deviation a channel."""
    with t.at(name):
        t.weight("weight", width)
        t.weight("bias", width)
    t.keep(stream=places * width if keep else 0, wide=2 * width)

"""What VQ-VAE, its twins and the gated PixelCNN cost, layer by layer as `zoo_vqvae.model`, `latent` and `pixelcnn`
build them. Imports no torch.

Letters: h w code grid, S channels of the condition, T caption tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.cost import Cost, Tally, bound

if TYPE_CHECKING:
    from zoo_vqvae.configs import FsqVae, Net, PixelCnn, Pixels, Vae, VqVae


def vqvae(c: VqVae) -> Cost:
    """Return a VQ-VAE's cost, a sample being one picture."""
    bound(c, "image_size")
    side, places = c.image_size or 0, _places(c.net, c.image_size)
    t = Tally()
    _encoder(t, c.net, c.channels, side)
    for book in range(c.books):
        if c.codebook == "gradient":
            with t.at("books", book, "codes"):
                t.weight("weight", c.vocab_size, c.width)
        t.work(2 * places * c.vocab_size * c.width)  # the distances to every code
        # The errors of both terms (one where codes are running means), and the chosen codes.
        t.keep(wide=places * c.width * (2 if c.codebook == "gradient" else 1), raw=8 * places)
        if c.estimator == "rotation":
            t.keep(wide=3 * places * c.width)
    encode = t.flops
    _decoder(t, c.net, c.channels, side, c.pixels)
    _likelihood(t, c.pixels, side)
    return t.cost(encode=encode, whole_batch=c.revive_below > 0 or c.codebook == "ema")


def fsqvae(c: FsqVae) -> Cost:
    """Return the FSQ twin's cost: a quantiser without parameters or products."""
    bound(c, "image_size")
    side = c.image_size or 0
    t = Tally()
    _encoder(t, c.net, c.channels, side)
    t.keep(wide=_places(c.net, side) * c.channels)  # the hyperbolic tangent's result
    encode = t.flops
    _decoder(t, c.net, c.channels, side, c.pixels)
    _likelihood(t, c.pixels, side)
    return t.cost(encode=encode)


def vae(c: Vae) -> Cost:
    """Return the continuous VAE's cost."""
    bound(c, "image_size")
    side, units = c.image_size or 0, _places(c.net, c.image_size) * c.channels
    t = Tally()
    _encoder(t, c.net, 2 * c.channels, side)
    t.keep(wide=5 * units)  # mean and log-variance, the variance, the deviation, and the noise
    encode = t.flops
    _decoder(t, c.net, c.channels, side, c.pixels)
    pixels = 3 * side**2
    if c.pixels.likelihood == "gaussian":
        t.keep(wide=6 * pixels, raw=3 * pixels)  # two tails with their logarithms, and their difference twice
    else:
        _likelihood(t, c.pixels, side)
    return t.cost(encode=encode)


def _places(net: Net, side: int | None) -> int:
    return ((side or 0) // net.factor) ** 2


def _encoder(t: Tally, net: Net, channels: int, side: int) -> None:
    """`zoo_vqvae.model.encoder`; every ReLU but the stack's is counted by the convolution after it."""
    last, layers = net.widths[-1], 2 * len(net.widths) - (not net.mix)
    with t.at("encoder"):
        for i, (before, width) in enumerate(zip((3, *net.widths), net.widths, strict=False)):
            side //= 2
            t.conv(2 * i, before, width, 4, side**2, reads=4 * side**2)
        if net.mix:
            t.conv(layers, last, last, 3, side**2)
            layers += 1
        _stack(t, layers, net, side**2)
        t.conv(layers + 1, last, channels, 1, side**2)


def _decoder(t: Tally, net: Net, channels: int, side: int, pixels: Pixels) -> None:
    """`zoo_vqvae.model.decoder`."""
    last, out = net.widths[-1], 3 if pixels.likelihood == "gaussian" else 3 * 256
    side //= net.factor
    with t.at("decoder"):
        t.conv(0, channels, last, 3 if net.mix else 1, side**2)
        _stack(t, 1, net, side**2)
        for i, (before, width) in enumerate(zip(net.widths[::-1], (*net.widths[::-1][1:], out), strict=True)):
            t.conv(2 + 2 * i, before, width, 4, side**2, transposed=True)
            side *= 2


def _stack(t: Tally, place: int, net: Net, places: int) -> None:
    """The residual blocks; each ReLU and the convolution after it keep one tensor."""
    last = net.widths[-1]
    with t.at(place):
        for i in range(net.residual_layers):
            with t.residual(i, places * last):
                t.conv(1, last, net.residual_hidden, 3, places)
                t.conv(3, net.residual_hidden, last, 1, places)


def _likelihood(t: Tally, pixels: Pixels, side: int) -> None:
    """The errors, or the log-probabilities of 256 values."""
    if pixels.likelihood == "gaussian":
        t.keep(wide=3 * side**2)
    else:
        t.cross_entropy(3 * side**2, 256)


def pixelcnn(c: PixelCnn) -> Cost:
    """Return the gated PixelCNN's cost, a sample being one picture's codes with what they are conditioned on."""
    bound(c, "vocab_size", "grids", *{"ids": ("text_vocab", "text_length"), "label": ("classes",)}.get(c.reads, ()))
    assert c.grids is not None
    assert c.vocab_size is not None
    ((rows, columns),) = c.grids
    places = rows * columns
    t = Tally()
    t.embedding("embed", c.vocab_size, c.width, places)
    with t.at("condition"):
        _condition(t, c, rows, columns)
    for i in range(c.layers):
        with t.at("layers", i):
            _layer(t, c, rows, columns, first=i == 0)
    with t.at("head"):
        t.conv(1, c.width, c.head, 1, places)
        t.conv(3, c.head, c.vocab_size, 1, places)
    t.cross_entropy(places, c.vocab_size)
    return t.cost()


def _condition(t: Tally, c: PixelCnn, rows: int, columns: int) -> None:
    """`zoo_vqvae.condition.Condition`: own parameters first, as torch names them."""
    width, places = c.width, rows * columns if c.conditioning == "map" else 1
    t.weight("null", width)
    if c.conditioning == "map":
        t.weight("places", width, rows, columns)
    if c.reads == "ids":
        with t.at("source"):
            t.embedding("token", c.text_vocab or 0, width, c.text_length or 0)
            t.embedding("place", c.text_length or 0, width, 0)
            _mlp(t, "before", width, c.text_length or 0)
            _mlp(t, "after", width, 1)
    elif c.reads == "label":
        t.embedding("source", c.classes or 0, width, 1)
    if c.conditioning == "map":
        with t.at("deconv"):
            t.conv(0, width, 2 * width, 1, places)
            t.keep(2 * width * places)  # GELU's input
            t.conv(2, 2 * width, width, 1, places)
            t.keep(width * places)
    t.keep(width * places)  # the condition itself, read by every layer


def _mlp(t: Tally, name: str, width: int, rows: int) -> None:
    with t.at(name):
        t.linear("0", width, 2 * width, rows)
        t.keep(2 * rows * width)  # GELU's input
        t.linear("2", 2 * width, width, rows)


def _layer(t: Tally, c: PixelCnn, rows: int, columns: int, *, first: bool) -> None:
    """Both stacks. Inputs are kept with their padding; a gate keeps its two factors."""
    width, half, places = c.width, c.kernel // 2, rows * columns
    with t.at("vertical"):
        padded = (rows + half + first) * (columns + 2 * half)
        t.conv("conv", width, 2 * width, (half + 1, c.kernel), places, reads=padded)
        _bias(t, c, places)
    t.keep(2 * width * places)

    def horizontal() -> None:
        t.conv("conv", width, 2 * width, (1, half + 1), places, reads=rows * (columns + half + first))
        t.conv("link", 2 * width, 2 * width, 1, places, bias=False)
        _bias(t, c, places)
        t.keep(2 * width * places)
        t.conv("out", width, width, 1, places)

    if first:
        with t.at("horizontal"):
            horizontal()
    else:
        with t.residual("horizontal", 3 * width * places):  # its own input, and the vertical stack's
            horizontal()


def _bias(t: Tally, c: PixelCnn, places: int) -> None:
    t.conv("bias", c.width, 2 * c.width, 1, places if c.conditioning == "map" else 1, reads=0, bias=False)

"""What VQGAN and the KL autoencoder cost, layer by layer as `zoo_vqgan.model` and `kl` build them. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.cost import Cost, Tally, bound

if TYPE_CHECKING:
    from zoo_vqgan.configs import Net, Vqgan
    from zoo_vqgan.kl_configs import Kl


def cost(c: Vqgan) -> Cost:
    """Return VQGAN's cost, a sample being one picture."""
    bound(c, "image_size")
    side = c.image_size or 0
    places = (side // c.net.factor) ** 2
    t = Tally()
    with t.at("encoder"):
        _encoder(t, c.net, side, c.net.z_channels)
    t.conv("before", c.net.z_channels, c.width, 1, places)
    with t.at("quantiser"):
        encode = (_gumbel if c.quantiser == "gumbel" else _nearest)(t, c, places)
    t.conv("after", c.width, c.net.z_channels, 1, places)
    with t.at("decoder"):
        _decoder(t, c.net, side)
    t.keep(wide=3 * side**2)  # the sign of the errors
    return t.cost(encode=encode, whole_batch=c.quantiser == "nearest" and c.nearest.revive_below > 0)


def kl(c: Kl) -> Cost:
    """Return the KL autoencoder's cost, a sample being one picture."""
    bound(c, "image_size")
    side = c.image_size or 0
    places, z = (side // c.net.factor) ** 2, c.net.z_channels
    t = Tally()
    with t.at("encoder"):
        _encoder(t, c.net, side, 2 * z)
    t.conv("before", 2 * z, 2 * c.channels, 1, places)
    encode = t.flops
    t.keep(wide=5 * places * c.channels)  # mean and log-variance, the variance, the deviation, and the noise
    t.conv("after", c.channels, z, 1, places)
    with t.at("decoder"):
        _decoder(t, c.net, side)
    t.keep(wide=3 * side**2)  # the sign of the errors
    return t.cost(encode=encode)


def _nearest(t: Tally, c: Vqgan, places: int) -> int:
    """The distances to every code; the errors of both terms and the chosen codes are kept."""
    with t.at("codes"):
        t.weight("weight", c.vocab_size, c.width)
    t.work(2 * places * c.vocab_size * c.width)
    t.keep(wide=2 * places * c.width, raw=8 * places)
    return t.flops


def _gumbel(t: Tally, c: Vqgan, places: int) -> int:
    """Logits; the soft codes and what they mix, of which the value is not used; the KL keeps log p and p."""
    t.linear("proj", c.width, c.vocab_size, places)
    encode = t.flops
    t.embedding("embed", c.vocab_size, c.width, places)
    t.work(2 * places * c.vocab_size * c.width)
    for _ in range(3):
        t.keep(wide=places * c.vocab_size)
    return encode


def _encoder(t: Tally, net: Net, side: int, n_out: int) -> None:
    t.conv("input", 3, net.channels, 3, side**2)
    n_in = net.channels
    for i, width in enumerate(net.widths):
        with t.at("levels", i):
            layers = _level(t, net, n_in, width, net.blocks, 2**i, side**2)
            if i < len(net.widths) - 1:
                side //= 2
                t.conv(layers, width, width, 3, side**2, reads=(2 * side + 1) ** 2)  # what it reads is padded
        n_in = width
    with t.at("middle"):
        _middle(t, n_in, net.groups, side**2)
    _norm(t, "norm", n_in, net.groups, side**2)
    t.keep(side**2 * n_in)  # swish's input
    t.conv("output", n_in, n_out, 3, side**2)


def _decoder(t: Tally, net: Net, side: int) -> None:
    side //= net.factor
    n_in = net.widths[-1]
    t.conv("input", net.z_channels, n_in, 3, side**2)
    with t.at("middle"):
        _middle(t, n_in, net.groups, side**2)
    for place, (i, width) in enumerate(reversed(list(enumerate(net.widths)))):
        with t.at("levels", place):
            layers = _level(t, net, n_in, width, net.blocks + 1, 2**i, side**2)
            if i:
                side *= 2
                t.conv(layers, width, width, 3, side**2)
        n_in = width
    _norm(t, "norm", n_in, net.groups, side**2)
    t.keep(side**2 * n_in)
    t.conv("output", n_in, 3, 3, side**2)


def _level(t: Tally, net: Net, n_in: int, width: int, blocks: int, reduction: int, places: int) -> int:
    """One level's blocks with their attention; return how many layers they are."""
    layers = 0
    for i in range(blocks):
        _block(t, layers, width if i else n_in, width, net.groups, places)
        layers += 1
        if reduction in net.attention:
            _attention(t, layers, width, net.groups, places)
            layers += 1
    return layers


def _middle(t: Tally, width: int, groups: int, places: int) -> None:
    _block(t, 0, width, width, groups, places)
    _attention(t, 1, width, groups, places)
    _block(t, 2, width, width, groups, places)


def _block(t: Tally, name: int, n_in: int, n_out: int, groups: int, places: int) -> None:
    """Norm, swish, convolution, twice; swish and convolution keep a tensor each."""
    # The convolution beside a branch that changes the width keeps the branch's input anyway.
    with t.residual(name, places * n_in if n_in == n_out else 0):
        if n_in == n_out:
            _norm(t, "0", n_in, groups, places)
        else:
            _norm(t, "0", n_in, groups, places, keep=False)
        t.keep(places * n_in)
        t.conv(2, n_in, n_out, 3, places)
        _norm(t, "3", n_out, groups, places)
        t.keep(places * n_out)
        t.conv(5, n_out, n_out, 3, places)
    if n_in != n_out:
        with t.at(name):
            t.conv("skip", n_in, n_out, 1, places)


def _attention(t: Tally, name: int, width: int, groups: int, places: int) -> None:
    with t.residual(name, places * width):
        _norm(t, "norm", width, groups, places)
        t.linear("qkv", width, 3 * width, places, stacked=3)
        t.attention(width, 1, places, places**2)
        t.linear("out", width, width, places)


def _norm(t: Tally, name: str, width: int, groups: int, places: int, *, keep: bool = True) -> None:
    """A group norm keeps what it reads, and a mean and a deviation a group."""
    with t.at(name):
        t.weight("weight", width)
        t.weight("bias", width)
    t.keep(stream=places * width if keep else 0, wide=2 * groups)

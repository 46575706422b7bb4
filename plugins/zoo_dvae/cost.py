"""What the discrete VAE costs, layer by layer as `zoo_dvae.model` builds it. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.cost import Cost, Tally, bound

if TYPE_CHECKING:
    from zoo_dvae.configs import Dvae


def cost(c: Dvae) -> Cost:
    """Return the dVAE's cost, a sample being one picture."""
    bound(c, "image_size")
    assert c.image_size is not None
    side, codes = c.image_size, (c.image_size // c.factor) ** 2
    widths = [c.n_hid * 2**i for i in range(c.groups)]
    t = Tally()
    with t.at("encoder"):
        t.conv("input", 3, c.n_hid, 7, side**2)
        _groups(t, c, c.n_hid, widths, (3, 3, 3, 1), [side // 2**i for i in range(c.groups)], pool=True)
        t.linear("output", widths[-1], c.vocab_size, codes)  # ReLU and layer keep one tensor
    encode = t.flops
    _between(t, c, codes)
    with t.at("decoder"):
        t.linear("input", c.vocab_size, c.n_init, codes, keep=False)  # it reads the soft codes
        sides = [side // 2**i for i in reversed(range(c.groups))]
        _groups(t, c, c.n_init, widths[::-1], (1, 3, 3, 3), sides, pool=False)
        t.conv("output", c.n_hid, 6, 1, side**2)
    t.keep(wide=15 * side**2)  # the likelihood: mu and ln b (6), |logit x - mu| twice (6), 1/b (3)
    return t.cost(encode=encode)


def _between(t: Tally, c: Dvae, codes: int) -> None:
    """Soft codes (their softmax), and the KL term: log p, p, and p again as a factor of log p."""
    t.keep(wide=codes * c.vocab_size)
    t.keep(wide=codes * c.vocab_size)
    t.keep(wide=codes * c.vocab_size)


def _groups(
    t: Tally, c: Dvae, n_in: int, widths: list[int], kernels: tuple[int, ...], sides: list[int], *, pool: bool
) -> None:
    """Residual groups: the first block of each changes the width, and the size changes between two."""
    with t.at("groups"):
        for group, (width, side) in enumerate(zip(widths, sides, strict=True)):
            if pool and group:  # the maximum keeps its input and where it was
                t.keep(stream=4 * side**2 * n_in, raw=8 * side**2 * n_in)
            for block in range(c.blocks):
                with t.at(group):
                    _block(t, block, n_in, width, c.bottleneck, kernels, side**2)
                n_in = width


def _block(t: Tally, block: int, n_in: int, width: int, bottleneck: int, kernels: tuple[int, ...], rows: int) -> None:
    """ReLU and convolution four times; each pair keeps one tensor between them."""
    inner = width // bottleneck
    channels = (n_in, *[inner] * (len(kernels) - 1), width)
    # The convolution beside a branch that changes the width keeps the branch's input anyway.
    with t.residual(block, rows * n_in if n_in == width else 0):
        for i, kernel in enumerate(kernels):
            t.conv(2 * i + 1, channels[i], channels[i + 1], kernel, rows)
    if n_in != width:
        with t.at(block):
            t.conv("skip", n_in, width, 1, rows)

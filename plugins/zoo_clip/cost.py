"""What CLIP costs, layer by layer as `zoo_clip.model` and `zoo_clip.towers` build it. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.cost import Cost, Tally, bound

if TYPE_CHECKING:
    from zoo_clip.configs import Clip


def cost(c: Clip, batch: int) -> Cost:
    """Return CLIP's cost, a sample being one pair in a global batch of `batch`.

    Captions are taken at their full length; training leaves out columns that are padding in every caption.
    """
    bound(c, "image_size", "text_vocab", "text_length")
    assert c.image_size is not None
    assert c.text_vocab is not None
    assert c.text_length is not None
    t = Tally()
    t.weight("logit_scale")
    with t.at("vision"):
        _vision(t, c, c.image_size)
    with t.at("text"):
        width, length = c.text_width, c.text_length
        t.weight("position", length, width)
        t.embedding("tokens", c.text_vocab, width, length)
        blocks(t, width, c.text_layers, c.text_heads, length, length * (length + 1) // 2)
        t.norm("norm_out", width, length)
        t.linear("project", width, c.embed_dim, 1, bias=False)
    _contrast(t, c, batch)
    return t.cost(whole_batch=True)


def _vision(t: Tally, c: Clip, size: int) -> None:
    width, patches = c.vision_width, (size // c.patch) ** 2
    length = 1 + patches
    t.weight("first", width)
    t.weight("position", length, width)
    t.conv("patches", 3, width, c.patch, patches, reads=size**2, bias=False)
    t.norm("norm_in", width, length)
    blocks(t, width, c.vision_layers, c.vision_heads, length, length**2)
    t.norm("norm_out", width, 1)
    t.keep(stream=patches * width)  # the other rows of the tensor that the norm reads one row of
    t.linear("project", width, c.embed_dim, 1, bias=False)


def blocks(t: Tally, width: int, layers: int, heads: int, length: int, pairs: int) -> None:
    """A tower's layers: residual sums number 2i (attention) and 2i + 1 (MLP)."""
    for i in range(layers):
        with t.at("blocks"), t.residual(2 * i, length * width):
            t.norm("norm", width, length)
            t.linear("qkv", width, 3 * width, length, stacked=3)
            t.attention(width, heads, length, pairs)
            t.linear("out", width, width, length)
        with t.at("blocks"), t.residual(2 * i + 1, length * width):
            t.norm("norm", width, length)
            t.linear("wide", width, 4 * width, length)
            t.keep(4 * length * width)  # the activation's input
            t.linear("out", 4 * width, width, length)


def _contrast(t: Tally, c: Clip, batch: int) -> None:
    """Both directions: this sample against the whole batch, products and log-probabilities."""
    for _ in range(2):
        t.work(2 * batch * c.embed_dim)
        t.keep(wide=batch, raw=batch)  # log-probabilities, and which captions are the same
    t.keep(wide=6 * c.embed_dim)  # both features, their unit vectors, and those times the scale

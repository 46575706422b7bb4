"""What CLIP's text tower costs as a text encoder, layer by layer as `zoo_clip.text` builds it. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.cost import Cost, Tally, bound
from zoo_clip.cost import blocks

if TYPE_CHECKING:
    from zoo_clip.text_configs import ClipText


def cost(c: ClipText) -> Cost:
    """Return the encoder's cost, a sample being one caption of `text_length` tokens."""
    bound(c, "text_vocab", "text_length")
    assert c.text_vocab is not None
    assert c.text_length is not None
    rows, width = c.text_length, c.width
    t = Tally()
    t.weight("position", rows, width)
    t.embedding("tokens", c.text_vocab, width, rows)
    blocks(t, width, c.layers - 1, c.heads, rows, rows * (rows + 1) // 2)
    t.keep(raw=rows)
    return t.cost(encode=t.flops)

"""What T5's encoder costs, layer by layer as `zoo_text.t5_model` builds it. Imports no torch.

Letters: T tokens, D width, H heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.cost import Cost, Tally, bound

if TYPE_CHECKING:
    from zoo_text.t5_configs import T5


def cost(c: T5) -> Cost:
    """Return the encoder's cost, a sample being one caption of `text_length` tokens."""
    bound(c, "text_vocab", "text_length")
    assert c.text_length is not None
    rows, width = c.text_length, c.width
    t = Tally()
    t.embedding("tokens", c.rows, width, rows)
    t.embedding("position", c.buckets, c.heads, 0)  # a few offsets, the same for every caption
    t.keep(raw=rows)  # what is padding
    for i in range(c.depth):
        with t.at("blocks", i):
            _block(t, c, rows, first=i == 0)
    _norm(t, "norm", width, rows)
    t.keep(raw=rows)
    return t.cost(encode=t.flops)


def _block(t: Tally, c: T5, rows: int, *, first: bool) -> None:
    """One layer: attention and MLP, each a residual branch. The bias that all layers read enters with the first."""
    width, inner, wide = c.width, c.heads * c.head_width, (1 + (c.activation == "gated-gelu")) * c.hidden
    with t.residual("attention", rows * width + first * c.heads * rows * rows):
        _norm(t, "norm", width, rows)
        t.linear("qkv", width, 3 * inner, rows, bias=False, stacked=3)
        t.work(4 * inner * rows * rows)
        t.keep(3 * rows * inner + c.heads * rows * rows)  # a learnt bias has the attention weights kept
        t.linear("out", inner, width, rows, bias=False)
    with t.residual("mlp", rows * width):
        _norm(t, "norm", width, rows)
        t.linear("up", width, wide, rows, bias=False, stacked=wide // c.hidden)
        t.keep(rows * (wide + c.hidden) if wide > c.hidden else 0)  # both halves, and the gate through its GELU
        t.linear("down", c.hidden, width, rows, bias=False)


def _norm(t: Tally, name: str, width: int, rows: int) -> None:
    """A norm with a gain alone: it keeps the residual stream it reads, and a root mean square a row."""
    with t.at(name):
        t.weight("weight", width)
    t.keep(stream=rows * width, wide=rows)

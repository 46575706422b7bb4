"""What DALL-E's transformer costs, layer by layer as `zoo_dalle.model` builds it. Imports no torch.

Letters: T caption positions, P prefix positions, N codes, L positions of the stream that are computed, D width.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.cost import Cost, Tally, bound

if TYPE_CHECKING:
    from zoo_dalle.configs import DallePrior


def cost(c: DallePrior) -> Cost:
    """Return the transformer's cost, a sample being one caption (or label) with its picture's codes."""
    bound(c, "vocab_size", "grids", *{"ids": ("text_vocab", "text_length"), "label": ("classes",)}.get(c.reads, ()))
    assert c.grids is not None
    assert c.vocab_size is not None
    ((rows, columns),) = c.grids
    codes, width = rows * columns, c.width
    length = c.prefix + codes - 1  # the last code is predicted and not read
    t = Tally()
    with t.at("prefix"):
        _prefix(t, c)
    with t.at("codes"):
        t.embedding("token", c.vocab_size, width, codes - 1)
        if c.positions == "row-column":
            t.embedding("row", rows, width, rows)
            t.embedding("column", columns, width, columns)
        else:
            t.embedding("position", codes, width, codes)
    pairs = {kind: c.pairs(kind, codes - 1) for kind in set(c.kinds)}
    for i, kind in enumerate(c.kinds):
        with t.at("blocks", i):
            _block(t, c, length, pairs[kind])
    for i in range(c.final_norms):
        t.norm("norm" if c.final_norms == 1 else f"norm.{i}", width, length)
    t.linear("head", width, c.vocab_size, codes, bias=c.head_bias)
    t.cross_entropy(codes, c.vocab_size)
    if c.reads == "ids":
        assert c.text_vocab is not None
        with t.at("caption_head"):
            predicted = c.prefix if c.first_token == "learned" else c.prefix - 1
            if c.first_token == "learned":
                t.weight("first", width)
            t.linear("logits", width, c.text_vocab, predicted, bias=c.head_bias)
            t.cross_entropy(predicted, c.text_vocab)
            t.keep(wide=2 * predicted)  # each token's nats, and which count
    return t.cost()


def _prefix(t: Tally, c: DallePrior) -> None:
    """What stands before the first code."""
    if c.reads == "ids":
        t.embedding("token", c.text_vocab or 0, c.width, c.prefix)
        t.embedding("pad", c.prefix, c.width, c.prefix)
        t.embedding("position", c.prefix, c.width, c.prefix)
        t.keep(raw=c.prefix)  # where a token stands
    else:
        t.embedding("token", (c.classes or 0) + 1 if c.reads == "label" else 1, c.width, 1)


def _block(t: Tally, c: DallePrior, length: int, pairs: int) -> None:
    """One layer: attention and MLP, each a residual branch."""
    width, hidden = c.width, c.mlp_ratio * c.width
    # A branch that is normalised again is called `inner` there.
    inner = ("inner",) if c.block == "sandwich" else ()
    with t.residual("attention", length * width):
        with t.at(*inner):
            t.norm("norm", width, length)
            t.linear("qkv", width, 3 * width, length, stacked=3)
            t.attention(width, c.heads, length, pairs)
            t.linear("out", width, width, length)
        if inner:
            t.norm("norm", width, length)
    with t.residual("mlp", length * width):
        with t.at(*inner):
            t.norm("norm", width, length)
            t.linear("up", width, hidden, length)
            t.keep(length * hidden)  # GELU's input
            t.linear("down", hidden, width, length)
        if inner:
            t.norm("norm", width, length)

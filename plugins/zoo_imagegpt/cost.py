"""What ImageGPT's transformer costs, layer by layer as `zoo_imagegpt.model` builds it. Imports no torch.

Letters: N codes, D width.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.cost import Cost, Tally, bound

if TYPE_CHECKING:
    from zoo_imagegpt.configs import ImageGptPrior


def cost(c: ImageGptPrior) -> Cost:
    """Return the transformer's cost, a sample being one picture's codes."""
    bound(c, "vocab_size", "grids", *(("classes",) if c.reads == "label" else ()))
    assert c.vocab_size is not None
    codes, width = c.length, c.width
    causal = c.objective == "ar"
    t = Tally()
    t.embedding("token", c.vocab_size, width, codes - causal)  # the last code is predicted and not read
    t.embedding("position", codes, width, codes)
    if causal:
        t.embedding("start", c.starts, width, 1)
    else:
        t.keep(codes, wide=codes, raw=codes)  # the mask, as it multiplies the embedding and the loss
    pairs = codes * (codes + 1) // 2 if causal else codes * codes
    for i in range(c.depth):
        with t.at("blocks", i):
            _block(t, c, pairs)
    _norm(t, "norm", width, codes)
    t.linear("head", width, c.vocab_size, codes, bias=False)
    t.cross_entropy(codes, c.vocab_size)
    return t.cost()


def _block(t: Tally, c: ImageGptPrior, pairs: int) -> None:
    """One layer: attention and MLP, each a residual branch."""
    rows, width, hidden = c.length, c.width, c.mlp_ratio * c.width
    with t.residual("attention", rows * width):
        _norm(t, "norm", width, rows)
        t.linear("qkv", width, 3 * width, rows, bias=False, stacked=3)
        t.attention(width, c.heads, rows, pairs)
        t.linear("out", width, width, rows, bias=False)
    with t.residual("mlp", rows * width):
        _norm(t, "norm", width, rows)
        t.linear("up", width, hidden, rows, bias=False)
        t.keep(rows * hidden)  # the activation's input
        t.linear("down", hidden, width, rows, bias=False)


def _norm(t: Tally, name: str, width: int, rows: int) -> None:
    """A norm with a gain alone: it keeps the residual stream it reads, and a root mean square a row."""
    with t.at(name):
        t.weight("weight", width)
    t.keep(stream=rows * width, wide=rows)

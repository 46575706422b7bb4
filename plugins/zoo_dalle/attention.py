"""Attention under a mask: dense, or for the rows and columns of a whole stream in blocks.

In blocks the keys of other rows and columns are never touched. The queries of one row (or column) form a block. A
row's block sees the row above and its own, a column's block itself ([1] appendix B.1: column attention on transposed
image states), and both see the whole text, in one softmax. Equal to the dense mask, and cheaper from a few hundred
codes on.

Letters: B rows of the batch, H heads, E head width, P prefix positions, L all positions, D = H*E, N = h*w codes, G
blocks of S codes each, W keys of a block's window.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.parts import Grid
from zoo_dalle.configs import Kind


def window_bias(kind: Kind, grid: Grid, device: torch.device) -> Tensor:
    """Return [G,1,S,W] float, 0 where a query of a block sees a key of its window and -inf elsewhere."""
    h, w = grid
    if kind == "column":
        seen = torch.ones(h, h, dtype=torch.bool).tril().expand(w, 1, h, h)
    else:
        own = torch.ones(w, w, dtype=torch.bool)
        seen = torch.cat((own.triu(), own.tril()), 1).repeat(h, 1, 1, 1)
        seen[0, :, :, :w] = False  # nothing is above the first row
    return torch.zeros(seen.shape).masked_fill(~seen, float("-inf")).to(device)


def dense(qkv: Tensor, mask: Tensor) -> Tensor:
    """Return [B,L,H*E] for queries, keys and values [B,L,3,H,E] under a mask [L,L], True where a key is seen."""
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def blocked(qkv: Tensor, prefix: int, grid: Grid, kind: Kind, bias: Tensor) -> Tensor:
    """Return [B,P+N,H*E] for queries, keys and values [B,P+N,3,H,E] of a whole stream.

    Args:
        qkv: the projections of all positions.
        prefix: P.
        grid: (h, w).
        kind: "row" or "column".
        bias: `window_bias` of the kind and grid.
    """
    b, _, _, heads, e = qkv.shape
    (h, w), n, rows = grid, grid[0] * grid[1], b * heads
    # Splits and rolls, and no slices: the backward pass of a slice fills and adds a tensor of the whole size.
    text_qkv, image_qkv = qkv.split((prefix, n), 1)
    text_q, text_k, text_v = text_qkv.permute(2, 0, 3, 1, 4).unbind()
    text = F.scaled_dot_product_attention(text_q, text_k, text_v, is_causal=True)

    order = (3, 1, 0, 4, 2, 5) if kind == "row" else (3, 2, 0, 4, 1, 5)
    q, k, v = image_qkv.unflatten(1, (h, w)).permute(order).contiguous().flatten(2, 3).unbind()
    if kind == "row":
        k, v = (torch.cat((x.roll(1, 0), x), 2) for x in (k, v))
    groups, size = q.shape[0], q.shape[2]  # q is [G,BH,S,E], k and v are [G,BH,W,E]

    q = q * e**-0.5
    flat_q = q.transpose(0, 1).reshape(rows, n, e)
    to_text = (flat_q @ text_k.reshape(rows, prefix, e).transpose(1, 2)).unflatten(1, (groups, size)).transpose(0, 1)
    weights = torch.cat((to_text, q @ k.transpose(2, 3) + bias), 3).softmax(3).to(v.dtype)
    on_text, on_image = weights.split((prefix, k.shape[2]), 3)
    from_text = on_text.transpose(0, 1).reshape(rows, n, prefix) @ text_v.reshape(rows, prefix, e)
    y = on_image @ v + from_text.unflatten(1, (groups, size)).transpose(0, 1)

    image = y.unflatten(1, (b, heads)).permute((1, 0, 3, 2, 4) if kind == "row" else (1, 3, 0, 2, 4))
    return torch.cat((text.transpose(1, 2).flatten(2), image.reshape(b, n, heads * e)), 1)

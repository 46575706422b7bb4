"""Row and column attention of small grids: blocks as in `zoo_dalle.banded`, and their weights kept for the backward.

A few hundred codes make blocks so small that batched products of all of them at once, on two threads or more, beat the
fused kernel, which would also make every score again in its backward pass. What is kept is of the mask's size.

Letters: B rows of the batch, H heads, E head width, P prefix positions, L positions, n = h*w codes, G blocks of S codes
each, W codes of a block's run.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo_dalle.banded import Band


def blocked(qkv: Tensor, band: Band) -> Tensor:
    """Return [B,L,H*E] for queries, keys and values [B,L,3,H,E]; a row's run is the row above and its own."""
    length, codes = qkv.shape[1], band.rows * band.columns
    qkv = F.pad(qkv, (0, 0) * 3 + (0, band.prefix + codes - length))
    b, _, _, heads, e = qkv.shape
    rows = b * heads
    # Splits and rolls, and no slices: the backward pass of a slice fills and adds a tensor of the whole size.
    text_qkv, image_qkv = qkv.split((band.prefix, codes), 1)
    text_q, text_k, text_v = text_qkv.permute(2, 0, 3, 1, 4).unbind()
    text = F.scaled_dot_product_attention(text_q, text_k, text_v, is_causal=True)

    order = (3, 2, 0, 4, 1, 5) if band.by_column else (3, 1, 0, 4, 2, 5)
    q, k, v = image_qkv.unflatten(1, (band.rows, band.columns)).permute(order).contiguous().flatten(2, 3).unbind()
    if band.before:
        k, v = (torch.cat((x.roll(1, 0), x), 2) for x in (k, v))
    groups, size = q.shape[0], q.shape[2]  # q is [G,BH,S,E], k and v are [G,BH,W,E]

    q = q * e**-0.5
    flat_q = q.transpose(0, 1).reshape(rows, codes, e)
    to_text = flat_q @ text_k.reshape(rows, band.prefix, e).transpose(1, 2)
    to_text = to_text.unflatten(1, (groups, size)).transpose(0, 1)
    weights = torch.cat((to_text, q @ k.transpose(2, 3) + band.bias[:, None].to(q.dtype)), 3).softmax(3)
    on_text, on_image = weights.split((band.prefix, k.shape[2]), 3)
    from_text = on_text.transpose(0, 1).reshape(rows, codes, band.prefix) @ text_v.reshape(rows, band.prefix, e)
    y = on_image @ v + from_text.unflatten(1, (groups, size)).transpose(0, 1)

    image = y.unflatten(1, (b, heads)).permute((1, 3, 0, 2, 4) if band.by_column else (1, 0, 3, 2, 4))
    return torch.cat((text.transpose(1, 2).flatten(2), image.reshape(b, codes, heads * e)), 1)[:, :length]

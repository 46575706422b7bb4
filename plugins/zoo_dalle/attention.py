"""Attention under a dense mask: for small grids, short streams, and layers that see every earlier position.

What is cheaper for large grids is in `zoo_dalle.banded`.

Letters: B rows of the batch, L positions, H heads, E head width.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def dense(qkv: Tensor, mask: Tensor | None) -> Tensor:
    """Return [B,L,H*E] for queries, keys and values [B,L,3,H,E].

    Args:
        qkv: the projections of all positions.
        mask: [L,L], True where a key is seen; None: every earlier position and a query's own.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None).transpose(1, 2).flatten(2)

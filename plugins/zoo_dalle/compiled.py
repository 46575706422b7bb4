"""The cached step compiled: one graph a kind of layer, of the same shapes at every code.

`zoo_dalle.decode` reads slices whose lengths grow with the code; here each layer reads as many slots at every code as
it ever needs, from a table, and a bias hides those that are not filled yet or belong to another. A graph is made at the
first codes drawn (seconds), and serves all layers of its kind.

Letters: R rows, N codes, S slots of a cache, s of them read at a step, D width, H heads, E head width.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zoo_dalle.decode import Decoder, Layer, Slots

if TYPE_CHECKING:
    from zoo_dalle.model import DallePrior

Norm = tuple[tuple[int, ...], Tensor, Tensor, float]
"""Shape, gain, bias and epsilon, as `layer_norm` takes them."""


class Tables:
    """What a layer writes and reads at each code."""

    def __init__(self, plan: Slots, codes: int, like: Tensor) -> None:
        rows = [plan.reads(i) for i in range(codes)]
        width = max(map(len, rows))
        self.slot = torch.tensor([[plan.slot(i)] for i in range(codes)], device=like.device)
        """[N,1]"""
        self.index: Tensor | None = None
        """[N,s], or None: all slots in order."""
        seen = torch.zeros(codes, width, dtype=torch.bool)
        if width == plan.count:
            for i, row in enumerate(rows):
                seen[i, row] = True
        else:
            self.index = torch.tensor([row + row[:1] * (width - len(row)) for row in rows], device=like.device)
            for i, row in enumerate(rows):
                seen[i, : len(row)] = True
        self.bias = torch.zeros(seen.shape, dtype=like.dtype).masked_fill(~seen, float("-inf"))[:, None].to(like.device)
        """[N,1,s], added to the scores."""


def layer_step(
    x: Tensor,
    norms: tuple[Norm, ...],
    products: tuple[tuple[Tensor, Tensor], ...],
    kv: Tensor,
    slot: Tensor,
    index: Tensor | None,
    bias: Tensor,
    approximate: str,
) -> Tensor:
    """Return the residual stream [R,D] after a layer, having stored the code's key and value in kv [2,R,H,S,E].

    Args:
        x: [R,D].
        norms: before attention and MLP; in a sandwich also after each.
        products: bias and packed weight of qkv, out, up and down.
        kv: the layer's cache.
        slot: [1], where this code's go.
        index: [s], the slots read; None: all.
        bias: [1,s], added to the scores.
        approximate: of GELU, in torch's words.
    """
    rows, heads, e = x.shape[0], kv.shape[2], kv.shape[4]
    (qkv_bias, qkv), (out_bias, out), (up_bias, up), (down_bias, down) = products
    made = torch.addmm(qkv_bias, F.layer_norm(x, *norms[0]), qkv).view(rows, 3, heads, 1, e)
    kv.index_copy_(3, slot, made[:, 1:].transpose(0, 1))
    read = kv if index is None else kv.index_select(3, index)
    y = F.scaled_dot_product_attention(made[:, 0], read[0], read[1], attn_mask=bias).reshape(rows, -1)
    y = torch.addmm(out_bias, y, out)
    x = x + (y if len(norms) == 2 else F.layer_norm(y, *norms[2]))
    y = F.gelu(torch.addmm(up_bias, F.layer_norm(x, *norms[1]), up), approximate=approximate)
    y = torch.addmm(down_bias, y, down)
    return x + (y if len(norms) == 2 else F.layer_norm(y, *norms[3]))


@cache
def compiled_step() -> Any:
    """Return `layer_step` compiled; asking for it loads the compiler, which takes seconds."""
    from torch._dynamo import config

    # Kinds of layers times numbers of rows; beyond its limit, 8, the compiler gives up and is slower than none.
    config.recompile_limit = max(config.recompile_limit, 64)
    return torch.compile(layer_step, dynamic=False)


class CompiledDecoder(Decoder):
    """A decoder whose layers are compiled."""

    def __init__(self, prior: DallePrior, rows: int) -> None:
        super().__init__(prior, rows)
        plans = {id(layer.plan): layer.plan for layer in self.layers}
        self.tables = {key: Tables(plan, prior.length, self.x) for key, plan in plans.items()}
        self.arguments = [_arguments(layer) for layer in self.layers]
        for layer in self.layers:
            layer.kv.zero_()  # slots that are not filled yet are read, if only to be weighed by 0

    def step(self, code: Tensor, i: int) -> Tensor:
        """Read code i [R]; return logits [R,K] of code i + 1."""
        x = self.prior.codes.token.weight[code] + self.positions[i]
        run = compiled_step()
        for layer, (norms, products) in zip(self.layers, self.arguments, strict=True):
            table = self.tables[id(layer.plan)]
            index = None if table.index is None else table.index[i]
            x = run(x, norms, products, layer.kv, table.slot[i], index, table.bias[i], layer.approximate)
        return self.predict(x)


def _arguments(layer: Layer) -> tuple[tuple[Norm, ...], tuple[tuple[Tensor, Tensor], ...]]:
    norms = (*layer.norms, *(layer.sandwich or ()))
    return (
        tuple((tuple(norm.normalized_shape), norm.weight, norm.bias, norm.eps) for norm in norms),
        (layer.qkv, layer.out, layer.up, layer.down),
    )

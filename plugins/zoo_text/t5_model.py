"""T5's encoder, in its first version and in 1.1: captions' ids to embeddings.

It has no loss: a stage that reads it trains it with its own, or it is frozen, as Imagen's is.

Letters: B batch, T tokens, D width, H heads, E head width.

[1] C. Raffel et al.: Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer.
    arXiv:1910.10683
[2] N. Shazeer: GLU Variants Improve Transformer. arXiv:2002.05202
[3] github.com/tensorflow/mesh, mesh_tensorflow/transformer/{transformer_layers,attention}.py: initial values, and the
    scale of scores that lives in them alone
[4] transformers, models/t5/modeling_t5.py
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError
from zoo.nn.residual import Residual
from zoo.nn.rms import RmsNorm
from zoo_text.t5_configs import T5

EPS = 1e-6
HIDDEN = -30_000.0
"""The score of padding: no weight is left of it, fp16 holds it, and a caption of padding alone stays finite."""


def spread(weight: Tensor, std: float) -> None:
    """Fill a weight from N(0, std); on the meta device, where that does nothing, leave it."""
    if not weight.is_meta:
        nn.init.normal_(weight, std=std)


class Linear(nn.Linear):
    """A matrix from N(0, std), without a bias."""

    def __init__(self, n_in: int, n_out: int, std: float) -> None:
        super().__init__(n_in, n_out, bias=False)
        spread(self.weight, std)


class Projections(Linear):
    """Queries, keys and values; the queries divided by the root of E when they are made [3]."""

    def __init__(self, width: int, inner: int, head_width: int) -> None:
        super().__init__(width, 3 * inner, width**-0.5)
        if not self.weight.is_meta:
            with torch.no_grad():
                self.weight[:inner] *= head_width**-0.5


class Embedding(nn.Embedding):
    """A table of learned rows from N(0, std)."""

    def __init__(self, rows: int, width: int, std: float) -> None:
        super().__init__(rows, width)
        spread(self.weight, std)


class Attention(nn.Module):
    """The attention branch. Scores are not divided by the root of E: the initial queries are, once [3]."""

    def __init__(self, config: T5) -> None:
        super().__init__()
        c = config
        self.heads, inner = c.heads, c.heads * c.head_width
        self.norm = RmsNorm(c.width, EPS)
        self.qkv = Projections(c.width, inner, c.head_width)
        self.out = Linear(inner, c.width, inner**-0.5)

    def forward(self, x_BTD: Tensor, bias: Tensor) -> Tensor:
        """Return [B,T,D]; `bias` [B,H,T,T] is added to the scores."""
        q, k, v = self.qkv(self.norm(x_BTD)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return self.out(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The MLP branch, gated as in [2] or not."""

    def __init__(self, config: T5) -> None:
        super().__init__()
        self.gated = config.activation == "gated-gelu"
        self.norm = RmsNorm(config.width, EPS)
        self.up = Linear(config.width, (1 + self.gated) * config.hidden, config.width**-0.5)
        self.down = Linear(config.hidden, config.width, config.hidden**-0.5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return [B,T,D]."""
        hidden = self.up(self.norm(x_BTD))
        if not self.gated:
            return self.down(F.relu(hidden))
        gate, value = hidden.chunk(2, -1)
        return self.down(F.gelu(gate, approximate="tanh") * value)


class Block(nn.Module):
    """One layer, of two residual sums."""

    def __init__(self, config: T5) -> None:
        super().__init__()
        self.attention = Residual(Attention(config))
        self.mlp = Residual(Mlp(config))

    def forward(self, x_BTD: Tensor, bias: Tensor) -> Tensor:
        return self.mlp(self.attention(x_BTD, bias))


class T5Encoder(nn.Module):
    """Captions' ids to embeddings.

    In fp32, bf16 or fp64. Published weights overflow in fp16: their residual stream grows past its range.

    Args:
        config: bound; `text_vocab` is set.

    Raises:
        ConfigError: it is not.
    """

    def __init__(self, config: T5) -> None:
        super().__init__()
        if config.text_vocab is None:
            raise ConfigError("text_vocab: T5's encoder needs its tokenizer's number of pieces")
        self.config = config
        self.width = config.width
        self.tokens = Embedding(config.rows, config.width, 1.0)
        self.position = Embedding(config.buckets, config.heads, config.width**-0.5)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RmsNorm(config.width, EPS)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return [B,T,D] of ids [B,T], zero where the mask [B,T] is False.

        Columns that are padding in every row are not computed. The gradient reaches every parameter.
        """
        used = mask.any(0).nonzero()
        length = int(used[-1]) + 1 if len(used) else 1
        seen = mask[:, :length]
        x, bias = self.tokens(ids[:, :length]), self.bias(seen)
        for block in self.blocks:
            x = block(x, bias)
        return F.pad(self.norm(x) * seen[..., None], (0, 0, 0, ids.shape[1] - length))

    def bias(self, mask: Tensor) -> Tensor:
        """Return what is added to all layers' scores [B,H,T,T]: each distance's learnt number, and none of padding."""
        length = mask.shape[1]
        buckets = _buckets(length, self.config.buckets, self.config.max_distance)
        by_offset = self.position(torch.tensor(buckets, device=mask.device)).t()  # [H,2T-1], from 1 - T to T - 1
        bias_HTT = by_offset.unfold(1, length, 1).flip(1)
        return bias_HTT.masked_fill(~mask[:, None, None, :], HIDDEN)


@functools.lru_cache(maxsize=64)
def _buckets(length: int, buckets: int, max_distance: int) -> tuple[int, ...]:
    """Return the bucket of each offset of a key from its query, from 1 - T to T - 1 [3].

    The second half of the buckets is of keys that come after. Of either half one half is of single distances, the
    other of logarithmically wider ones.
    """
    side = buckets // 2
    single = side // 2
    wider = side - single

    def of(distance: int) -> int:
        if distance < single:
            return distance
        # log(distance / single) / log(max_distance / single) >= i / wider, in whole numbers
        steps = (i for i in range(wider) if distance**wider * single**i >= max_distance**i * single**wider)
        return single + max(steps)

    return tuple(of(abs(offset)) + side * (offset > 0) for offset in range(1 - length, length))

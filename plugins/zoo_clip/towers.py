"""CLIP's two transformers.

[1] A. Radford et al.: Learning Transferable Visual Models From Natural Language Supervision. arXiv:2103.00020
[2] github.com/openai/CLIP, clip/model.py

Shapes: B batch, L tokens of a tower, D its width, H heads, E joint embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.quick import quick_gelu
from zoo.nn.residual import Residual


class QuickGelu(nn.Module):
    """x sigmoid(1.702 x) [2]."""

    def forward(self, x: Tensor) -> Tensor:
        return quick_gelu(x)


ACTIVATIONS = {"quick_gelu": QuickGelu, "gelu": nn.GELU}


class Linear(nn.Linear):
    """A linear layer; weights from N(0, std), bias 0."""

    def __init__(self, n_in: int, n_out: int, std: float, *, bias: bool = True) -> None:
        super().__init__(n_in, n_out, bias=bias)
        nn.init.normal_(self.weight, std=std)
        if bias:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A table of learned rows from N(0, std)."""

    def __init__(self, rows: int, width: int, std: float = 0.02) -> None:
        super().__init__(rows, width)
        nn.init.normal_(self.weight, std=std)


class Attention(nn.Module):
    """Norm, then multi-head self-attention over [B,L,D].

    Args:
        width: D.
        heads: H.
        depth: blocks of the tower; the deeper it is, the smaller the output weights start [2].
        causal: token i sees tokens up to i.
    """

    def __init__(self, width: int, heads: int, depth: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width, width**-0.5)
        self.out = Linear(width, width, width**-0.5 * (2 * depth) ** -0.5)

    def forward(self, x_BLD: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x_BLD)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B,H,L,D/H]
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Norm, then two layers with four times the width between them, over [B,L,D]."""

    def __init__(self, width: int, depth: int, activation: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide = Linear(width, 4 * width, (2 * width) ** -0.5)
        self.act = ACTIVATIONS[activation]()
        self.out = Linear(4 * width, width, width**-0.5 * (2 * depth) ** -0.5)

    def forward(self, x_BLD: Tensor) -> Tensor:
        return self.out(self.act(self.wide(self.norm(x_BLD))))


def tower_blocks(width: int, heads: int, depth: int, activation: str, *, causal: bool) -> nn.Sequential:
    """Return `depth` blocks: residual sums number 2i (attention) and 2i + 1 (MLP)."""
    sums: list[nn.Module] = []
    for _ in range(depth):
        sums += [Residual(Attention(width, heads, depth, causal)), Residual(Mlp(width, depth, activation))]
    return nn.Sequential(*sums)


class VisionTower(nn.Module):
    """Normalised pictures [B,3,S,S] to features [B,E]."""

    def __init__(self, size: int, patch: int, width: int, layers: int, heads: int, embed: int, activation: str) -> None:
        super().__init__()
        std = width**-0.5
        self.patches = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.first = nn.Parameter(torch.empty(width).normal_(std=std))
        self.position = nn.Parameter(torch.empty(1 + (size // patch) ** 2, width).normal_(std=std))
        self.norm_in = nn.LayerNorm(width)
        self.blocks = tower_blocks(width, heads, layers, activation, causal=False)
        self.norm_out = nn.LayerNorm(width)
        self.project = Linear(width, embed, std, bias=False)

    def hidden(self, images: Tensor) -> Tensor:
        """Return [B,L,D] after the last block, before the last norm; row 0 stands for the whole picture."""
        patches_BLD = self.patches(images).flatten(2).transpose(1, 2)
        first_BLD = self.first.to(patches_BLD.dtype).expand(len(images), 1, -1)
        return self.blocks(self.norm_in(torch.cat([first_BLD, patches_BLD], 1) + self.position))

    def forward(self, images: Tensor) -> Tensor:
        return self.project(self.norm_out(self.hidden(images)[:, 0]))


class TextTower(nn.Module):
    """Token ids [B,T] to features [B,E], read at the last token of each caption."""

    def __init__(
        self, vocab: int, length: int, width: int, layers: int, heads: int, embed: int, activation: str
    ) -> None:
        super().__init__()
        self.tokens = Embedding(vocab, width)
        self.position = nn.Parameter(torch.empty(length, width).normal_(std=0.01))
        self.blocks = tower_blocks(width, heads, layers, activation, causal=True)
        self.norm_out = nn.LayerNorm(width)
        self.project = Linear(width, embed, width**-0.5, bias=False)

    def hidden(self, ids: Tensor) -> Tensor:
        """Return [B,T,D] after the last norm; column i has seen tokens up to i."""
        return self.norm_out(self.blocks(self.tokens(ids) + self.position[: ids.shape[1]]))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        # The mask is needed here alone: padding comes after the last token, where no causal column looks.
        columns = torch.arange(ids.shape[1], device=ids.device)
        last = (columns * mask).amax(1)  # an empty caption is read at column 0
        return self.project(self.hidden(ids)[torch.arange(len(ids), device=ids.device), last])

"""What a denoiser is conditioned on, as numbers: time, pooled text, and the null condition.

Letters: B batch, T text tokens, N queries, S keys, D width of the text, E width of the embedding, I inner width.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
[2] P. Dhariwal, A. Nichol: Diffusion models beat GANs on image synthesis. arXiv:2105.05233
[3] github.com/deep-floyd/IF, deepfloyd_if/model/nn.py
[4] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import PartMismatch
from zoo.interfaces import Cond
from zoo.nn.precision import wide

PERIOD = 10_000
"""Ratio of the slowest wave of a time embedding to the fastest [2]."""


def activation(name: str) -> nn.Module:
    """Return "silu" or "gelu" as a module."""
    return {"silu": nn.SiLU, "gelu": nn.GELU}[name]()


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Return [B,width] of times [B], counted in thousandths: cosines, then sines, the fastest first [2]."""
    half = width // 2
    # As in [2] the frequencies are fp32 numbers, whatever the precision.
    frequencies = torch.exp(torch.arange(half, dtype=torch.float32, device=t.device) * (-math.log(PERIOD) / half))
    angles = t[:, None] * frequencies.to(t.dtype)
    return F.pad(torch.cat((angles.cos(), angles.sin()), dim=1), (0, width % 2))


class TimeEmbedding(nn.Module):
    """Times [B] in [0, 1] to [B,E]: waves, then two layers [2].

    Args:
        width: of the waves.
        time_width: E.
        name: "silu" or "gelu", between the layers.
        linear: class of the layers, which decides how they begin.
    """

    def __init__(self, width: int, time_width: int, name: str, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.width = width
        self.first = linear(width, time_width)
        self.activation = activation(name)
        self.second = linear(time_width, time_width)

    def forward(self, t: Tensor) -> Tensor:
        """Return [B,E]."""
        waves = sinusoid(1000 * wide(t), self.width)
        return self.second(self.activation(self.first(waves.to(self.first.weight.dtype))))


class Pool(nn.Module):
    """Text [B,T,D] to [B,E]: norm, one query attending to all tokens, a linear layer, norm [1] appendix F, [3].

    The query is the tokens' mean plus a learned vector; it attends to itself too [3].
    """

    def __init__(self, width: int, time_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.position = nn.Parameter(torch.randn(1, width) / width**0.5)
        self.query = nn.Linear(width, width)
        self.keys = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, time_width)
        self.after = nn.LayerNorm(time_width)

    def forward(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """Return [B,E] of [B,T,D]; mask [B,T] is True where a token is read."""
        x = self.norm(text)
        if mask is None:
            mean = x.mean(1, keepdim=True)
        else:
            read = mask.to(x.dtype)[..., None]
            mean = (x * read).sum(1, keepdim=True) / read.sum(1, keepdim=True)
        own = (mean + self.position.to(mean.dtype)).to(x.dtype)
        x = torch.cat((own, x), dim=1)
        query, keys = self.query(own), self.keys(x)
        pooled = attend(query, keys, self.heads, None if mask is None else F.pad(mask, (1, 0), value=True))
        return self.after(self.project(pooled[:, 0]))


def attend(query: Tensor, keys: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Return [B,N,I] of queries [B,N,I] and keys with values [B,S,2I]; mask [B,S] is True where a key is read."""
    k, v = keys.chunk(2, dim=2)
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, k, v))
    seen = None if mask is None else mask[:, None, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)


def text_or_null(cond: Cond, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return text [B,T,D] and mask [B,T], with zeros and one token where the condition is dropped or empty. [1]

    Raises:
        PartMismatch: the condition has no text.
    """
    if cond.text is None:
        raise PartMismatch("this denoiser reads captions, and the condition has no `text`")
    text, mask = cond.text.to(dtype), cond.text_mask
    if cond.drop is not None:
        text = text.masked_fill(cond.drop[:, None, None], 0)
        mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device) if mask is None else mask
        mask = mask & ~cond.drop[:, None]
    if mask is not None:
        first = torch.arange(mask.shape[1], device=mask.device) == 0
        mask = mask | (first & ~mask.any(1, keepdim=True))
    return text, mask


def label_or_null(cond: Cond, classes: int) -> Tensor:
    """Return labels [B], `classes` where the condition is dropped. [4]

    Raises:
        PartMismatch: the condition has no label, or one is out of range.
    """
    if cond.label is None:
        raise PartMismatch("this denoiser reads labels, and the condition has no `label`")
    bad = cond.label[(cond.label < 0) | (cond.label >= classes)]
    if len(bad):
        raise PartMismatch(f"labels run from 0 to {classes - 1}, got {int(bad[0])}")
    return cond.label if cond.drop is None else cond.label.masked_fill(cond.drop, classes)


def bounded(x: Tensor) -> Tensor:
    """Return x clamped to [-1, 1], with the gradient of x: a clamp's own would leave what is outside there."""
    return x.clamp(-1, 1).detach() + (x - x.detach())

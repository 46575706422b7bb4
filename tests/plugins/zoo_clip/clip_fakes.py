"""A tiny CLIP with a tokenizer of whole words, and what it is shown."""

from __future__ import annotations

import attrs
import torch
from torch.nn import functional as F

from zoo.interfaces import Batch
from zoo_clip.configs import clip_tiny
from zoo_clip.model import Clip

WORDS = ("a", "small", "large", "red", "green", "blue", "circle", "square", "triangle", "cross", "at", "the", "top")
WORDS += ("left",)


class Words(torch.nn.Module):
    """A tokenizer of whole words that counts its calls; like ours it has a state of its own."""

    def __init__(self, vocab_size: int = 384, length: int = 32) -> None:
        super().__init__()
        self.vocab_size, self.length, self.calls = vocab_size, length, []
        self.register_buffer("state", torch.ones(3))

    def encode(self, texts, rng=None):
        """Return ids and mask, as a tokenizer does."""
        self.calls.append((len(texts), rng))
        ids = torch.zeros(len(texts), self.length, dtype=torch.int64)
        mask = torch.zeros(len(texts), self.length, dtype=torch.bool)
        for i, text in enumerate(texts):
            row = [1 + WORDS.index(word) for word in text.split()]
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[i, : len(row)] = True
        return ids, mask


def build(seed: int = 0, **changes) -> Clip:
    """Return a tiny CLIP with weights large enough to tell inputs apart."""
    torch.manual_seed(seed)
    model = Clip(attrs.evolve(clip_tiny(), **changes), Words())
    for p in model.parameters():
        if p.ndim:
            torch.nn.init.normal_(p, std=0.2)
    return model


def pictures(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Return smooth random pictures."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=g)
    return F.interpolate(coarse, size, mode="bilinear", align_corners=False)


TEXTS = ("a red circle", "a blue square", "a large green cross at the top left", "a small red circle")


def batch_of(n: int = 4) -> Batch:
    """Return pictures with different captions."""
    return Batch(images=pictures(n), texts=TEXTS[:n])

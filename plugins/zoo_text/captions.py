"""What every tokenizer does with captions and rows of ids: draw, warn, pad."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

PAD = 0


def drawn(texts: Iterable[str], most: int, seed: int) -> list[str]:
    """Return all texts, or a uniform sample of `most` of them (reservoir)."""
    kept: list[str] = []
    source = random.Random(seed)
    for i, text in enumerate(texts):
        if i < most:
            kept.append(text)
        elif (j := source.randrange(i + 1)) < most:
            kept[j] = text
    return kept


def alphabet(texts: Iterable[str], most: int) -> set[str]:
    """Return the commonest letters, ties in code point order."""
    counts = Counter(letter for text in texts for letter in text)
    return set(sorted(counts, key=lambda c: (-counts[c], c))[:most])


def padded(rows: Sequence[Sequence[int]], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids [B,T] int64 of rows of at most T = `length`, 0 where the mask [B,T] bool is False."""
    ids = torch.full((len(rows), length), PAD, dtype=torch.int64)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[i, : len(row)] = True
    return ids.to(device), mask.to(device)


def warn_cut(rows: Sequence[list[int]], room: int, decode: Callable[[list[int]], str]) -> bool:
    """Warn of the rows that are longer than `room`, if any; return whether there are."""
    long = [row for row in rows if len(row) > room]
    if long:
        others = f" (and {len(long) - 1} more of {len(rows)} captions)" if len(long) > 1 else ""
        lost = decode(long[0][room:])
        text = f"caption truncated to {room} of {len(long[0])} tokens: '... {lost}' is cut{others}"
        warnings.warn(text, UserWarning, stacklevel=4)
    return bool(long)


def warn_unread(texts: Sequence[str], rows: Sequence[list[int]], strange: range, why: str) -> None:
    """Warn of captions that say nothing to a reader of these pieces: empty, or half of them `strange` ids."""
    for text, row in zip(texts, rows, strict=True):
        if not row:
            warnings.warn("caption is empty: nothing is read of it", UserWarning, stacklevel=3)
        elif 2 * sum(i in strange for i in row) >= len(row):
            warnings.warn(f"caption '{text[:40]}' {why}", UserWarning, stacklevel=3)

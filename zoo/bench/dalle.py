"""DALL-E's transformer beside transformers' ImageGPT: sampling with a cache at two batch sizes, and a training step.

Both have one width, depth, number of heads, vocabulary and number of tokens. Ours is the prior that reads nothing,
with its own row, column and convolutional masks; the peer attends to every earlier token, as it always does.
"""

from __future__ import annotations

from typing import Any

import torch

from zoo.bench.imagegpt import Size, beside_transformers, peer_model
from zoo.bench.timing import Row
from zoo.specs import locate

SIZE = Size(side=16)


def our_model() -> Any:
    """Return our prior on a 16x16 grid."""
    config = locate("zoo_dalle.configs:DallePrior")(
        width=SIZE.width, depth=SIZE.depth, heads=SIZE.heads, vocab_size=SIZE.vocab,
        grids=((SIZE.side, SIZE.side),), reads="nothing", cond_drop=0.0,
    )  # fmt: skip
    return locate("zoo_dalle.model:DallePrior")(config)


def needed_flops(kinds: tuple[str, ...]) -> float:
    """Return the FLOPs of one picture's forward pass, counting the keys the masks keep and no others."""
    seen = locate("zoo_dalle.configs:seen")
    grid, width, tokens = (SIZE.side, SIZE.side), SIZE.width, SIZE.tokens
    # The last code is never read; every position sees the start vector.
    keys = sum(len(seen(kind, grid, 11, i)) + 1 for kind in kinds for i in range(tokens - 1)) + len(kinds)
    return tokens * (24.0 * SIZE.depth * width**2 + 2 * width * SIZE.vocab) + 4 * width * keys


def rows(pairs: int = 5) -> list[Row]:
    """Return tokens a second of sampling (batch 1 and 8, as it is and compiled) and of a training step (batch 2).

    Raises:
        NotInstalled: transformers is missing.
    """
    torch.manual_seed(0)
    ours = our_model()
    return beside_transformers("dalle-prior", ours, peer_model(SIZE), SIZE, needed_flops(ours.kinds), pairs)

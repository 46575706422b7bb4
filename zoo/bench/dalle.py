"""DALL-E's transformer beside transformers' ImageGPT: sampling with a cache at two batch sizes, and a training step.

Both have one width, depth, number of heads, vocabulary and number of tokens. Ours is the prior that reads nothing,
with its own row, column and convolutional masks; the peer attends to every earlier token, as it always does.
"""

from __future__ import annotations

import copy
import importlib
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.bench.timing import Row, alternate, matmul_peak
from zoo.errors import NotInstalled
from zoo.interfaces import Batch, Cond
from zoo.rng import Rng
from zoo.specs import locate

WIDTH, DEPTH, HEADS, GRID, VOCAB = 256, 8, 8, (16, 16), 512
TOKENS = GRID[0] * GRID[1]


def our_model() -> Any:
    """Return our prior on a 16x16 grid."""
    config = locate("zoo_dalle.configs:DallePrior")(
        width=WIDTH, depth=DEPTH, heads=HEADS, vocab_size=VOCAB, grids=(GRID,), reads="nothing", cond_drop=0.0
    )
    return locate("zoo_dalle.model:DallePrior")(config)


def peer_model() -> nn.Module:
    """Return transformers' ImageGPT, without dropout; its vocabulary has one more id, the start token.

    Raises:
        NotInstalled: transformers is missing.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        # One built for another torch fails at import, and would take transformers along, which can do without it.
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    try:
        from transformers import ImageGPTConfig, ImageGPTForCausalImageModeling
    except ImportError as error:
        raise NotInstalled("this benchmark needs transformers: pip install 'image-zoo[bench]'") from error
    config = ImageGPTConfig(
        vocab_size=VOCAB + 1, n_positions=TOKENS + 1, n_embd=WIDTH, n_layer=DEPTH, n_head=HEADS,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=VOCAB, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return ImageGPTForCausalImageModeling(config)


def needed_flops(kinds: tuple[str, ...]) -> float:
    """Return the FLOPs of one picture's forward pass, counting the keys the masks keep and no others."""
    seen = locate("zoo_dalle.configs:seen")
    # The last code is never read; every position sees the start vector.
    keys = sum(len(seen(kind, GRID, 11, i)) + 1 for kind in kinds for i in range(TOKENS - 1)) + len(kinds)
    return TOKENS * (24.0 * DEPTH * WIDTH**2 + 2 * WIDTH * VOCAB) + 4 * WIDTH * keys


def sampling(ours: Any, peer: Any, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the two calls that draw 256 codes for each row."""
    start = torch.full((batch, 1), VOCAB)

    def sample_peer() -> Tensor:
        drawn = peer.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=TOKENS, min_new_tokens=TOKENS,
            use_cache=True, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_beams=1,
        )  # fmt: skip
        if drawn.shape != (batch, TOKENS + 1):
            raise RuntimeError(f"the peer drew {tuple(drawn.shape)}")
        return drawn

    return lambda: ours.sample(Cond(), batch=batch, rng=Rng(0, range(batch))), sample_peer


def training(ours: Any, peer: nn.Module, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the two calls that make one update: forward, backward, AdamW."""
    codes = torch.randint(VOCAB, (batch, TOKENS))
    inputs = torch.cat((torch.full((batch, 1), VOCAB), codes[:, :-1]), 1)
    rng = Rng(0, range(batch))

    def update(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

        def call() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()

        return call

    def peer_loss() -> Tensor:
        return F.cross_entropy(peer(input_ids=inputs, use_cache=False).logits.flatten(0, 1), codes.flatten())

    def our_loss() -> Tensor:
        return ours.loss(Batch(codes=codes), Cond(), step=0, rng=rng)["loss"]

    return update(ours, our_loss), update(peer, peer_loss)


def rows(pairs: int = 5) -> list[Row]:
    """Return tokens a second of sampling (batch 1 and 8, as it is and compiled) and of a training step (batch 2).

    Raises:
        NotInstalled: transformers is missing.
    """
    torch.manual_seed(0)
    ours, peer = our_model(), peer_model()
    flops = needed_flops(ours.kinds)
    fast = copy.deepcopy(ours)
    fast.compile_sampling()
    cases = [
        ("sample", ours, 1, sampling, 1),
        ("sample", ours, 8, sampling, 1),
        ("sample compiled", fast, 1, sampling, 1),
        ("sample compiled", fast, 8, sampling, 1),
        ("train", ours, 2, training, 3),
    ]
    result = []
    for what, ours, batch, calls, passes in cases:
        for model in (ours, peer):
            model.train(what == "train")
        if ours is fast:
            start = time.perf_counter()
            fast.sample(Cond(), batch=batch, rng=Rng(0, range(batch)))
            print(f"compiled for batch {batch} in {time.perf_counter() - start:.1f} s, not counted", file=sys.stderr)
        timing = alternate(*calls(ours, peer, batch), pairs=pairs)
        result.append(
            Row(
                name=f"dalle-prior {what}, batch {batch}, beside transformers ImageGPT",
                ours=batch * TOKENS / timing.ours,
                peer=batch * TOKENS / timing.peer,
                ratio=timing.ratio,
                unit="tokens/s",
                sizes={
                    "width": WIDTH,
                    "depth": DEPTH,
                    "heads": HEADS,
                    "tokens": TOKENS,
                    "vocab": VOCAB,
                    "batch": batch,
                },
                peak_share=passes * batch * flops / timing.ours / matmul_peak(),
            )
        )
    return result

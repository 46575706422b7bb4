"""ImageGPT beside transformers': sampling with a cache at two batch sizes, a training step, and its peak memory.

Both have one width, depth, number of heads, vocabulary and number of positions; `zoo.bench.dalle` uses the same peer.
"""

from __future__ import annotations

import copy
import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.bench.memory import resident
from zoo.bench.timing import Row, alternate, matmul_peak
from zoo.errors import NotInstalled
from zoo.interfaces import Batch, Cond
from zoo.rng import Rng
from zoo.specs import locate

SIDES = (16, 32)
"""Grids of codes that are timed: a step of eight rows reads more cache than weights on the second."""


@attrs.frozen(kw_only=True)
class Size:
    """What fixes the amount of work."""

    width: int = 256
    depth: int = 8
    heads: int = 8
    side: int = 32
    """Of the square grid of codes."""
    vocab: int = 512

    @property
    def tokens(self) -> int:
        """Codes of a picture."""
        return self.side**2

    def sizes(self, batch: int) -> dict[str, int]:
        """Return what a row says."""
        said = {"width": self.width, "depth": self.depth, "heads": self.heads, "tokens": self.tokens}
        return {**said, "vocab": self.vocab, "batch": batch}

    def flops(self) -> float:
        """Return the FLOPs of one picture's forward pass, each code attending to those before it and itself."""
        n, d = self.tokens, self.width
        return n * (24.0 * self.depth * d**2 + 2 * d * self.vocab) + 2.0 * self.depth * d * n * (n + 1)


def our_model(size: Size) -> Any:
    """Return our transformer, with weights in its head, which begins as zero."""
    config = locate("zoo_imagegpt.configs:ImageGptPrior")(
        width=size.width, depth=size.depth, heads=size.heads, vocab_size=size.vocab, grids=((size.side, size.side),)
    )
    model = locate("zoo_imagegpt.model:ImageGptPrior")(config)
    nn.init.normal_(model.head.weight, std=0.02)
    return model


def peer_model(size: Size) -> nn.Module:
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
        vocab_size=size.vocab + 1, n_positions=size.tokens + 1, n_embd=size.width, n_layer=size.depth,
        n_head=size.heads, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=size.vocab,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    return ImageGPTForCausalImageModeling(config)


def sampling(ours: Any, peer: Any, size: Size, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the two calls that draw a picture's codes for each row."""
    start, tokens = torch.full((batch, 1), size.vocab), size.tokens

    def sample_peer() -> Tensor:
        drawn = peer.generate(
            start, attention_mask=torch.ones_like(start), max_new_tokens=tokens, min_new_tokens=tokens,
            use_cache=True, do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_beams=1,
        )  # fmt: skip
        if drawn.shape != (batch, tokens + 1):
            raise RuntimeError(f"the peer drew {tuple(drawn.shape)}")
        return drawn

    return lambda: ours.sample(Cond(), batch=batch, rng=Rng(0, range(batch))), sample_peer


def training(ours: Any, peer: nn.Module, size: Size, batch: int) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return the two calls that make one update: forward, backward, AdamW."""
    codes = torch.randint(size.vocab, (batch, size.tokens))
    inputs = torch.cat((torch.full((batch, 1), size.vocab), codes[:, :-1]), 1)
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


def beside_transformers(name: str, ours: Any, peer: nn.Module, size: Size, flops: float, pairs: int) -> list[Row]:
    """Return tokens a second of sampling (batch 1 and 8, as it is and compiled) and of a training step (batch 2).

    Args:
        name: of our model.
        ours, peer: the models.
        size: of both.
        flops: what a forward pass of ours needs for one picture.
        pairs: of timings.
    """
    fast = copy.deepcopy(ours)
    fast.compile_sampling()
    cases: list[tuple[str, Any, int, Any, int]] = [
        ("sample", ours, 1, sampling, 1),
        ("sample", ours, 8, sampling, 1),
        ("sample compiled", fast, 1, sampling, 1),
        ("sample compiled", fast, 8, sampling, 1),
        ("train", ours, 2, training, 3),
    ]
    result = []
    for what, model, batch, calls, passes in cases:
        for each in (model, peer):
            each.train(what == "train")
        if model is fast:
            start = time.perf_counter()
            fast.sample(Cond(), batch=batch, rng=Rng(0, range(batch)))
            print(f"compiled for batch {batch} in {time.perf_counter() - start:.1f} s, not counted", file=sys.stderr)
        mine, theirs = calls(model, peer, size, batch)
        timing = alternate(mine, theirs, pairs)
        result.append(
            Row(
                name=f"{name} {what}, batch {batch}, beside transformers ImageGPT",
                ours=batch * size.tokens / timing.ours,
                peer=batch * size.tokens / timing.peer,
                ratio=timing.ratio,
                unit="tokens/s",
                sizes=size.sizes(batch),
                peak_share=passes * batch * flops / timing.ours / matmul_peak(),
            )
        )
    return result


MODELS: Mapping[str, Callable[[Size], Any]] = {"ours": our_model, "peer": peer_model}


def peak(which: str, batch: int) -> int:
    """Return the bytes by which updates raise this process's highest memory: weights' gradients and moments too."""
    size = Size()
    model = MODELS[which](size).train()
    call = training(model, model, size, batch)[which == "peer"]
    before = resident("VmRSS")
    for _ in range(2):
        call()
    return max(resident("VmHWM") - before, 0)


def memory_row(batch: int = 2) -> Row:
    """Return the peak memory of a training step, each measured in a process of its own."""

    def measured(which: str) -> int:
        command = [sys.executable, "-m", "zoo.bench.imagegpt", which, str(batch)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    ours, peer = (measured(which) / 2**20 for which in MODELS)
    return Row("imagegpt train, peak memory", ours, peer, peer / ours, "MiB", Size().sizes(batch))


def rows(pairs: int = 5) -> list[Row]:
    """Return all rows.

    Raises:
        NotInstalled: transformers is missing.
    """
    torch.manual_seed(0)
    found = []
    for side in SIDES:
        size = Size(side=side)
        name = f"imagegpt, {size.tokens} codes,"
        found += beside_transformers(name, our_model(size), peer_model(size), size, size.flops(), pairs)
    return [*found, memory_row()]


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(peak(sys.argv[1], int(sys.argv[2])))

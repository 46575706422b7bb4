"""DALL-E's sparse layers at the paper's length beside the same layers under a dense mask.

The peer is torch's `scaled_dot_product_attention` with the whole mask of 1280 x 1280, which on a CPU is a fused kernel
that never holds a score matrix either: what it pays for is every score that the mask hides.

    python scripts/bench.py attention --threads 1
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from zoo.bench.memory import resident
from zoo.bench.timing import Row, alternate
from zoo.interfaces import Batch, Cond
from zoo.rng import Rng
from zoo.specs import locate
from zoo.train.allocator import keep_freed_memory

TEXT, GRID, WIDTH, HEADS, KERNEL = 256, (32, 32), 512, 8, 11
LENGTH = TEXT + GRID[0] * GRID[1]
KINDS = ("row", "column", "conv")
SIZES = {"width": WIDTH, "heads": HEADS, "text": TEXT, "codes": GRID[0] * GRID[1]}
MEMORY_BATCH = 16
RETURNED = MEMORY_BATCH * LENGTH * 4 * WIDTH * torch.float32.itemsize
"""Bytes of the output, and of the gradients of queries, keys and values."""
STACK, DEPTH = 12, 8


def attentions(kind: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return a layer's attention in blocks, and under its dense mask; of [B,L,3,H,E]."""
    masks = locate("zoo_dalle.masks:Masks")(TEXT, GRID, KERNEL)
    device = torch.device("cpu")
    ours, mask = masks.attend(kind, LENGTH, device), masks.dense(kind, LENGTH, device)
    return ours, lambda qkv: locate("zoo_dalle.attention:dense")(qkv, mask)


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    """Return queries, keys and values, and the gradient of the output."""
    qkv = torch.randn(batch, LENGTH, 3, HEADS, WIDTH // HEADS, requires_grad=True)
    return qkv, torch.randn(batch, LENGTH, WIDTH)


def both_ways(attend: Callable[[Tensor], Tensor], qkv: Tensor, grad: Tensor) -> None:
    """Run forward and backward."""
    qkv.grad = None
    attend(qkv).backward(grad)


def layer_rows(pairs: int, batch: int = 1) -> list[Row]:
    """Return the seconds of one layer's scores to values, forward and backward."""
    rows = []
    for kind in KINDS:
        ours, peer = (partial(both_ways, attend, *inputs(batch)) for attend in attentions(kind))
        timing = alternate(ours, peer, pairs)
        sizes = {**SIZES, "batch": batch}
        rows.append(Row(f"{kind} attention, forward + backward", timing.ours, timing.peer, timing.ratio, "s", sizes))
    return rows


def peak(kind: str, which: str) -> int:
    """Return the bytes by which a forward and backward pass raises this process's highest memory."""
    attend = attentions(kind)[which == "dense"]
    both_ways(attend, *inputs(1))  # threads and workspaces
    qkv, grad = inputs(MEMORY_BATCH)
    before = resident("VmRSS")
    both_ways(attend, qkv, grad)
    return max(resident("VmHWM") - before, 0)


def memory_rows() -> list[Row]:
    """Return the peak memory of one layer, each measured in a process of its own.

    Once with the output and the gradients, and once without them: no attention can do without these.
    """

    def measured(kind: str, which: str) -> int:
        command = [sys.executable, "-m", "zoo.bench.attention", kind, which]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    rows = []
    for kind in KINDS:
        ours, peer = (measured(kind, which) / 2**20 for which in ("blocks", "dense"))
        sizes = {**SIZES, "batch": MEMORY_BATCH}
        rows.append(Row(f"{kind} attention, peak memory", ours, peer, peer / ours, "MiB", sizes))
        ours, peer = (x - RETURNED / 2**20 for x in (ours, peer))
        rows.append(Row(f"{kind} attention, working memory", ours, peer, peer / max(ours, 1e-9), "MiB", sizes))
    return rows


def prior(depth: int) -> Any:
    """Return the prior at the paper's length, 512 wide."""
    config = locate("zoo_dalle.configs:DallePrior")(
        width=WIDTH, depth=depth, heads=HEADS, cond_drop=0.0, vocab_size=8192, grids=(GRID,), text_vocab=16384,
        text_length=TEXT,
    )  # fmt: skip
    return locate("zoo_dalle.model:DallePrior")(config)


def dense(call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the call with every layer under its dense mask."""

    def run() -> Any:
        with mock.patch("zoo_dalle.masks.BANDED_FROM", dict.fromkeys(KINDS, LENGTH)):
            return call()

    return run


def stack_row(pairs: int) -> Row:
    """Return the seconds of the transformer's layers, 12 in the paper's pattern, forward and backward."""
    model = prior(STACK)
    x = torch.randn(1, LENGTH, WIDTH, requires_grad=True)

    def call() -> None:
        y = x
        for block, kind in zip(model.blocks, model.kinds, strict=True):
            y = block(y, model.masks.attend(kind, LENGTH, x.device))
        y.sum().backward()

    timing = alternate(call, dense(call), pairs)
    sizes = {**SIZES, "depth": STACK, "batch": 1}
    return Row(f"{STACK} layers, forward + backward", timing.ours, timing.peer, timing.ratio, "s", sizes)


def training_row(pairs: int) -> Row:
    """Return the tokens a second of an update: forward, backward, AdamW."""
    model = prior(DEPTH).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    batch = Batch(codes=torch.randint(8192, (1, GRID[0] * GRID[1])))
    cond = Cond(ids=torch.randint(16384, (1, TEXT)), mask=torch.ones(1, TEXT, dtype=torch.bool))

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        model.loss(batch, cond, step=0, rng=Rng(0, range(1)))["loss"].backward()
        optimizer.step()

    timing = alternate(call, dense(call), pairs)
    sizes = {**SIZES, "depth": DEPTH, "batch": 1}
    return Row("update of the prior", LENGTH / timing.ours, LENGTH / timing.peer, timing.ratio, "tokens/s", sizes)


def rows(pairs: int = 5) -> list[Row]:
    """Return the rows of one layer of each kind, of a stack, and of a training step."""
    torch.manual_seed(0)
    keep_freed_memory()  # as a training does
    return [*layer_rows(pairs), *memory_rows(), stack_row(pairs), training_row(pairs)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(peak(*sys.argv[1:3]))

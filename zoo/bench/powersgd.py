"""What compressing gradients takes beside the forward and backward pass that made them.

Two ranks of one thread each on this machine hold a stack of linear layers without biases or nonlinearities, so that
forward and backward are six matrix products a layer-token and nothing else, and reduce its gradients in turns by every
reducer. Both ranks begin together; a figure is that of the slower one. Time in collectives, waiting for the other rank
included, is taken apart: the machine's own memory is no network.

Needs two cores that do nothing else.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import distributed as dist
from torch import nn

from zoo.bench import processes
from zoo.bench.timing import Row
from zoo.interfaces import Grad
from zoo.train import group
from zoo.train.options import TrainOptions
from zoo.train.reduction import make_reducer

RANKS = 2
PASSES = "forward + backward"
MEAN = "plain mean"
COLLECTIVES = ("all_reduce", "all_gather", "all_to_all_single")


@attrs.frozen(kw_only=True)
class Sizes:
    """The work."""

    width: int = 1024
    hidden: int = 4096
    layers: int = 4
    """Matrices, in turns [hidden, width] and [width, hidden]."""
    tokens: int = 1024
    """Of one rank."""
    rank: int = 8
    repeats: int = 9

    @property
    def reducers(self) -> dict[str, str | None]:
        """Name -> reducer as the command line says it: the plain mean, the published variant, DALL-E's with the same
        rank, and with the share of the width that it was trained with."""
        share = math.ceil(896 / 3968 * self.width)
        original = f"powersgd:rank={self.rank},dense_steps=0"
        paper = {f"powersgd-dalle, rank {rank}": f"powersgd-dalle:rank={rank}" for rank in (self.rank, share)}
        return {MEAN: None, f"powersgd, rank {self.rank}": original, **paper}


@attrs.frozen
class Took:
    """Seconds of one call on one rank."""

    total: float
    apart: float = 0.0
    """Of these, in collectives."""


def stack(sizes: Sizes) -> nn.Sequential:
    """Return the layers."""
    sides = [(sizes.width, sizes.hidden), (sizes.hidden, sizes.width)]
    return nn.Sequential(*(nn.Linear(*sides[i % 2], bias=False) for i in range(sizes.layers)))


def gradients(model: nn.Module) -> list[Grad]:
    """Return the gradients as an engine hands them to a reducer."""
    named = [(name, p.grad) for name, p in model.named_parameters()]
    return [Grad(name, x, tuple(x.shape), None, None, True) for name, x in named if x is not None]


@contextmanager
def timed_collectives() -> Iterator[list[float]]:
    """Return a context in which the seconds of every collective are listed."""
    seconds: list[float] = []

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                seconds.append(time.perf_counter() - began)

        return act

    before = {name: getattr(dist, name) for name in COLLECTIVES}
    try:
        for name, call in before.items():
            setattr(dist, name, timed(call))
        yield seconds
    finally:
        for name, call in before.items():
            setattr(dist, name, call)


def calls(sizes: Sizes) -> dict[str, Callable[[], None]]:
    """Return what is timed on this rank, by name; passes come first, for they make the gradients."""
    torch.manual_seed(0)
    model = stack(sizes)
    torch.manual_seed(dist.get_rank())
    # The first layer's input needs a gradient too, as inside a larger model.
    x = torch.randn(sizes.tokens, sizes.width, requires_grad=True)
    back = torch.randn(sizes.tokens, sizes.width if sizes.layers % 2 == 0 else sizes.hidden)

    def passes() -> None:
        model.zero_grad(set_to_none=True)
        model(x).backward(back)

    def reducing(said: str | None) -> Callable[[], None]:
        reducer = make_reducer(TrainOptions(model="", reducer=said))

        def act() -> None:
            reduced = reducer.reduce(gradients(model), dist.group.WORLD)
            if reduced.decompress is not None:
                reduced.decompress(True)

        return act

    return {PASSES: passes, **{name: reducing(said) for name, said in sizes.reducers.items()}}


def measure(sizes: Sizes) -> list[dict[str, Took]]:
    """Return what every call took on this rank, a mapping a repetition; reducers go round, so that drift cancels."""
    made = calls(sizes)
    names = [name for name in made if name != PASSES]
    found: list[dict[str, Took]] = []
    for repeat in range(sizes.repeats + 1):
        turn = repeat % len(names)
        took = {}
        for name in (PASSES, *names[turn:], *names[:turn]):
            dist.barrier()
            with timed_collectives() as apart:
                began = time.perf_counter()
                made[name]()
                took[name] = Took(time.perf_counter() - began, sum(apart))
        found.append(took)
    return found[1:]  # the first warms up


def slower(ranks: Sequence[dict[str, Took]]) -> dict[str, Took]:
    """Return one repetition of all ranks: the longest total, and with it what is no rank's own work."""
    merged = {}
    for name in ranks[0]:
        total = max(rank[name].total for rank in ranks)
        own = max(rank[name].total - rank[name].apart for rank in ranks)
        merged[name] = Took(total, max(total - own, 0.0))
    return merged


def as_rows(found: Sequence[dict[str, Took]], sizes: Sizes) -> list[Row]:
    """Return two rows a reducer, with communication and without: its seconds beside those of the passes."""
    said = {**attrs.asdict(sizes), "ranks": RANKS, "threads": 1}
    rows = []
    for name in sizes.reducers:
        for what, seconds in (
            ("", lambda took: took.total),
            (", without communication", lambda took: took.total - took.apart),
        ):
            ours, peer = ([seconds(took[which]) for took in found] for which in (name, PASSES))
            ratio = statistics.median(b / max(a, 1e-9) for a, b in zip(ours, peer, strict=True))
            rows.append(
                Row(f"{name}{what} beside {PASSES}", statistics.median(ours), statistics.median(peer), ratio, "s", said)
            )
    return rows


def table(found: Sequence[dict[str, Took]], sizes: Sizes) -> str:
    """Return the figures for a reader: milliseconds, and shares of the passes."""
    lines = [f"{'':26}{'median ms':>10}{'least ms':>10}{'collectives':>13}{'of passes':>11}{'own work':>10}"]
    base = statistics.median(took[PASSES].total for took in found)
    for name in (PASSES, *sizes.reducers):
        total = [took[name].total for took in found]
        apart = statistics.median(took[name].apart for took in found)
        middle = statistics.median(total)
        shares = f"{middle / base:11.1%}{(middle - apart) / base:10.1%}"
        lines.append(f"{name:26}{1e3 * middle:10.1f}{1e3 * min(total):10.1f}{1e3 * apart:13.1f}{shares}")
    return "\n".join(lines)


def rows(sizes: Sizes | None = None) -> list[Row]:
    """Return the rows; a ratio of 10 is an overhead of a tenth of the passes.

    Raises:
        Failed: a rank failed.
    """
    sizes = Sizes() if sizes is None else sizes
    with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
        Path(folder, "sizes.json").write_text(json.dumps(attrs.asdict(sizes)))
        processes.launch(RANKS, ["-m", "zoo.bench.powersgd", folder], minutes=20)
        told = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(RANKS)]
    ranks = [[{name: Took(*took) for name, took in one.items()} for one in rank] for rank in told]
    found = [slower(pair) for pair in zip(*ranks, strict=True)]
    print(table(found, sizes), file=sys.stderr)
    return as_rows(found, sizes)


def main(folder: str) -> None:
    """Measure on one rank, leave `RANK.json` in the folder that has `sizes.json`, and leave the process."""
    torch.set_num_threads(1)
    world = group.meet(10)
    found = measure(Sizes(**json.loads(Path(folder, "sizes.json").read_text())))
    said = [{name: attrs.astuple(took) for name, took in one.items()} for one in found]
    Path(folder, f"{world.rank}.json").write_text(json.dumps(said))
    dist.barrier()
    sys.stderr.flush()
    os._exit(0)  # the backend's threads may abort on the way out


if __name__ == "__main__":
    main(sys.argv[1])

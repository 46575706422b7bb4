"""Whether processes that hold the same weights hold the same bits of them at the end of a training.

As a program, `python -m zoo.bench.replicas COMMANDS.json`, it is one of several processes: it runs training commands,
and before the weights of a stage are written every process says the digest of what it holds of them.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from zoo.bench import processes
from zoo.files import atomic_text
from zoo.parts import Recipe
from zoo.train import one
from zoo.train.stage import Stage


def digest(module: nn.Module) -> str:
    """Return the sha256 of the parameters, of one that is sharded this process's shard."""
    found = hashlib.sha256()
    for name, p in module.named_parameters():
        held = getattr(p, "ds_tensor", p).detach().cpu().contiguous()
        found.update(f"{name} {tuple(held.shape)}".encode())
        found.update(held.view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def path_of(run: Path, part: str) -> Path:
    """Return where the digests of a stage are kept."""
    return run / f"replicas-{part}.json"


def unequal(run: Path, part: str, shards: int) -> int:
    """Return how many processes of a finished training hold other weights than the first that has the same shard.

    Args:
        run: the run folder.
        part: the stage.
        shards: processes that share a copy; they are neighbours.
    """
    digests: Sequence[str] = json.loads(path_of(run, part).read_text())
    return sum(digests[rank] != digests[rank % shards] for rank in range(len(digests)))


def run(command: processes.Command) -> None:
    """Run one training command, and leave the digests of each stage in its folder, in the order of ranks."""
    finish = one._finish

    def compared(setting: one.Setting, stage: Stage, recipe: Recipe, prints: Mapping[str, str]) -> None:
        # Here, for a hook at the end is called on one process alone, and the next stage takes the shards away.
        world = setting.engine.world
        digests = world.gather(digest(stage))
        if world.rank == 0:
            atomic_text(path_of(setting.folder.path, stage.part), json.dumps(digests))
        finish(setting, stage, recipe, prints)

    one._finish = compared
    try:
        processes.run(command)
    finally:
        one._finish = finish


if __name__ == "__main__":
    processes.work(sys.argv[1], run)

"""`launch.py` with eyes on the training: what every replica ends with, a gradient spoilt on one rank, a run rewound.

Beside options of `TrainOptions` a command may have: "spoil": {"rank", "step", "block"}, an infinity in the gradient
of that rank's block, counted from 0, in that update; "rewind": {"of", "step"}, go on from this checkpoint of a run.
"""

import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import torch
from launch import go

from zoo.nn.residual import residuals
from zoo.train import loop, one
from zoo.train.group import met
from zoo.weights import file_order


class Spoilt(torch.autograd.Function):
    """The identity, whose backward pass puts an infinity into the first place of the gradient."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad.view(-1)[0] = float("inf")
        return grad


def say_what_it_ends_with(finish):
    def finished(setting, stage, recipe, prints):
        digest = hashlib.sha256()
        for name, lazy in file_order(setting.engine.weights()):
            digest.update(name.encode() + lazy.fetch().numpy().tobytes())
        print("replica", setting.folder.path.name, digest.hexdigest(), file=sys.stderr)
        finish(setting, stage, recipe, prints)

    return finished


def spoiling(update, rank, step, block):
    def updated(job, batch, at):
        if at != step or job.engine.world.rank != rank:
            return update(job, batch, at)
        branch = list(residuals(job.stage))[block][1].branch
        hook = branch.register_forward_hook(lambda module, given, y: Spoilt.apply(y))
        values = update(job, batch, at)
        hook.remove()
        return values

    return updated


def rewind(of: Path, out: Path, step: int, part: str) -> None:
    shutil.copytree(of, out)
    (out / f"{part}.safetensors").unlink()
    for place in (out / "checkpoints" / part).glob("step-*"):
        if int(place.name[5:]) > step:
            shutil.rmtree(place)


def main() -> None:
    one._finish = say_what_it_ends_with(one._finish)
    update = loop.update
    for command in json.loads(Path(sys.argv[1]).read_text()):
        spoil, back = command.pop("spoil", None), command.pop("rewind", None)
        loop.update = update if spoil is None else spoiling(update, **spoil)
        if back is not None:
            if os.environ["RANK"] == "0":
                rewind(Path(back["of"]), Path(command["out"]), back["step"], command["part"])
            if (group := met()) is not None:
                group.barrier()
        go(command)
    os._exit(0)


if __name__ == "__main__":
    main()

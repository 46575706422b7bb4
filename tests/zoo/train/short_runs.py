"""Short training commands, stopped where a test wants it, and what they leave."""

import os
import signal

import pytest
import torch

from zoo.train import one
from zoo.train.interrupt import Interrupted
from zoo.train.options import TrainOptions
from zoo.train.run import run
from zoo.weights import load_tensors

SMALL = {"data": "shapes:n=48", "steps": 4, "batch": 8, "sample_every": 0}


def go(out, model="dalle-tiny", **changes):
    """Run one command; returns the run folder."""
    return run(TrainOptions(model=model, out=out, **{**SMALL, **changes}))


def saved(folder, role):
    """The tensors of a finished part."""
    return load_tensors(folder / f"{role}.safetensors")[0]


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def interrupted(out, at, **changes):
    """Start a run and send SIGINT after update `at`."""

    class Stops(one.Setting):
        def told(self, step, row):
            if step == at:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.train.run.Setting", Stops)
        with pytest.raises(Interrupted):
            go(out, **changes)

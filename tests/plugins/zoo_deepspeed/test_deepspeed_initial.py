"""Training from existing weights, by one process and by two that shard them or do not."""

import json

import pytest
import torch
from launch import go, run_all
from runs_fakes import captioned, command, numbers, weights

EMA = ("prior.train.ema=0.9",)
WAYS = {
    "plain": {"engine": "torch"}, "zero0": {"zero": 0}, "zero2": {"zero": 2}, "zero3": {"zero": 3},
    "resblock3": {"zero": 3, "precision": "resblock"},
}  # fmt: skip
"""Of two processes."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A system trained for a moment, and its prior trained on, on other captions, in every way."""
    top = tmp_path_factory.mktemp("initial")
    data = captioned(top / "pictures")
    for part in ("codebook", "prior"):
        go(command("shapes:n=48", top / "base", part, set=EMA))
    tuned = {"init": str(top / "base"), "set": EMA, "save_every": 8}
    go(command(data, top / "one", "prior", **tuned))
    several = [command(data, top / name, "prior", **tuned, **how) for name, how in WAYS.items()]
    run_all(top, 2, several)
    return top


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_training_of_one_process(place, way):
    rel = 2e-2 if way == "resblock3" else 1e-5
    assert numbers(place / way, "prior") == pytest.approx(numbers(place / "one", "prior"), rel=rel)
    one, two = weights(place / "one", "prior"), weights(place / way, "prior")
    apart = sum((two[name].double() - x.double()).square().sum() for name, x in one.items()).sqrt()
    moved = sum((weights(place / "base", "prior")[n].double() - x).square().sum() for n, x in one.items()).sqrt()
    assert apart < (0.3 if way == "resblock3" else 0.01) * moved


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_trained_is_taken_and_measures_are_written(place, way):
    for role in ("codebook", "tokenizer"):
        assert all(torch.equal(x, weights(place / way, role)[k]) for k, x in weights(place / "base", role).items())
    found, expected = (json.loads((place / name / "finetuning.json").read_text()) for name in (way, "one"))
    for when in ("before", "after"):
        one, two = (report["parts"]["prior"][when] for report in (expected, found))
        assert two["loss"] == pytest.approx(one["loss"], rel=2e-2 if way == "resblock3" else 1e-4)

"""A system judged at the checkpoints of its training."""

import json

import pytest
import torch

import zoo
from zoo.cli import main
from zoo.errors import UnknownName
from zoo.evaluate.over_time import draw, lines, over_time
from zoo.registry import load_system
from zoo.train.moments import Moment, load, moments
from zoo.train.options import TrainOptions
from zoo.train.run import run as train


def no_bar(total, what, unit):
    from contextlib import nullcontext
    from types import SimpleNamespace

    return nullcontext(SimpleNamespace(update=lambda n: None, n=0))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("over-time") / "run"
    train(TrainOptions(model="imagen-tiny", out=out, steps=6, batch=4, save_every=2, keep=9, sample_every=0))
    return out


def test_every_checkpoint_is_judged(run, capsys):
    assert main(["evaluate", str(run), "--checkpoints", "sr32", "--captions", "4", "--split", "validation"]) == 0
    said = capsys.readouterr().out
    report = json.loads((run / "over-time.json").read_text())
    assert [row["step"] for row in report["checkpoints"]] == [2, 4, 6]
    assert [row["pictures"] for row in report["checkpoints"]] == [8, 16, 24]
    assert len({row["loss"] for row in report["checkpoints"]}) == 3
    assert all(set(row["accuracy"]) == {"validation"} for row in report["checkpoints"])
    assert (run / "over-time.png").exists()
    assert "over-time.png" in said


def test_the_last_moment_is_the_run_itself(run):
    system = zoo.load(str(run))
    last = over_time(system, run, "base", "shapes", splits=["validation"], captions=2, bar=no_bar)["checkpoints"][-1]
    from zoo.evaluate.report import evaluate_run

    again = evaluate_run(zoo.load(str(run)), "shapes", splits=["validation"], captions=2, candidates=(1,),
                         distances=(), pictures=512, bar=no_bar)  # fmt: skip
    assert last["loss"] == again["base"]["loss"]
    assert {m.step for m in moments(run, "base")} == {2, 4, 6}


def test_a_stage_that_is_not_there(run):
    with pytest.raises(UnknownName, match="bse"):
        over_time(zoo.load(str(run)), run, "bse", "shapes", bar=no_bar)


def test_a_stage_whose_system_cannot_draw_yet(run, tmp_path):
    """A finished part alone: its loss is followed, or what is missing is said."""
    out = tmp_path / "latent"
    train(TrainOptions(model="kl-tiny", out=out, steps=4, batch=4, save_every=2, keep=9, sample_every=0))
    report = over_time(load_system(str(out)), out, "latent", "shapes", bar=no_bar)
    assert [row["accuracy"] for row in report["checkpoints"]] == [{}, {}]
    draw(report, tmp_path / "x.png")
    assert lines(report)[1].split() == ["updates", "pictures", "loss"]


def test_a_finished_part_among_checkpoints_brings_its_own_text_encoder(run):
    system = zoo.load(str(run))
    own = {n: x.clone() for n, x in system.parts["text_encoder"].state_dict().items()}
    first, *_, last = moments(run, "base")
    load(system, "base", first)
    assert any(not torch.equal(x, own[n]) for n, x in system.parts["text_encoder"].state_dict().items())
    load(system, "base", Moment(last.step, run / "base.safetensors"))
    assert all(torch.equal(x, own[n]) for n, x in system.parts["text_encoder"].state_dict().items())
    assert Moment(last.step, run / "base.safetensors").batch == 4


def test_options_that_checkpoints_do_not_heed_are_refused(run, capsys):
    assert main(["evaluate", str(run), "--checkpoints", "sr32", "--blur", "0,1"]) == 2
    assert capsys.readouterr().err == ("zoo: --checkpoints judges by loss and single samples alone: leave out --blur\n")

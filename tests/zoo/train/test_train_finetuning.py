"""What training from existing weights changed is measured, and no measure is worth a run."""

import json
import logging
import shutil
import signal

import pytest
import torch
from PIL import Image
from short_runs import SMALL, equal, go, interrupted, saved

from zoo.train import finetuning
from zoo.train.interrupt import Interrupted
from zoo.weights import load_tensors, save_tensors, sha256

pytestmark = pytest.mark.usefixtures("few_measures")


def test_before_and_after_are_written_and_said(base, tmp_path, caplog):
    caplog.set_level("INFO", "zoo.train")
    go(tmp_path / "run", part="prior", init=str(base), steps=8)
    report = json.loads((tmp_path / "run" / "finetuning.json").read_text())
    assert (report["init"], report["data"]) == (str(base), SMALL["data"])
    before, after = report["parts"]["prior"]["before"], report["parts"]["prior"]["after"]
    assert before["split"] == after["split"] == "validation"
    assert after["loss"] < before["loss"]
    assert 0 <= before["caption_accuracy"] <= 1
    assert before["captions"] == after["captions"] == 4
    lines = [r.getMessage() for r in caplog.records if "fine-tuning" in r.getMessage()]
    assert len(lines) == 2
    assert "caption accuracy" in lines[1]
    assert f"(was {before['loss']:.4f})" in lines[1]


def test_data_without_a_judge_have_a_loss_alone(base, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(12):
        Image.new("RGB", (32, 32), (20 * i, 0, 255 - 20 * i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a plain colour, number {i}")
    go(tmp_path / "run", part="prior", init=str(base), data=f"folder:{folder}")
    figures = json.loads((tmp_path / "run" / "finetuning.json").read_text())["parts"]["prior"]["after"]
    assert "loss" in figures
    assert "caption_accuracy" not in figures


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of\nmemory"), MemoryError(), RuntimeError("no")])
def test_a_measure_that_fails_is_not_worth_a_run(base, whole, tmp_path, monkeypatch, caplog, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(finetuning, "look", fails)
    go(tmp_path / "run", part="prior", init=str(base))
    assert equal(saved(tmp_path / "run", "prior"), saved(whole, "prior"))
    assert not (tmp_path / "run" / "finetuning.json").exists()
    (line,) = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
    assert f"prior: not measured before fine-tuning: {type(error).__name__}" in line
    assert "\n" not in line


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(signal.SIGINT)])
def test_a_stop_while_measuring_is_a_stop(base, tmp_path, monkeypatch, error):
    def stops(*_, **__):
        raise error

    monkeypatch.setattr(finetuning, "loss_figures", stops)
    with pytest.raises(type(error)):
        go(tmp_path / "run", part="prior", init=str(base))


def test_pictures_are_drawn_a_few_at_a_time(base, tmp_path, monkeypatch):
    asked, look = [], finetuning.look
    monkeypatch.setattr(finetuning, "CAPTIONS", 12)
    monkeypatch.setattr(finetuning, "look", lambda g, data, ask: asked.append(ask) or look(g, data, ask))
    go(tmp_path / "run", part="prior", init=str(base))
    assert [(ask.captions, ask.chunk) for ask in asked] == [(12, 8)] * 2


def test_a_part_that_is_trained_again_is_measured_again(base, tmp_path):
    out = tmp_path / "run"

    def figures():
        return json.loads((out / "finetuning.json").read_text())["parts"]["prior"]

    def prints():
        return {when: said["weights"]["prior"] for when, said in figures().items()}

    go(out, part="prior", init=str(base))
    one = figures()
    assert prints() == {when: sha256(x / "prior.safetensors") for when, x in (("before", base), ("after", out))}
    go(out, part="prior", resume=True)
    assert figures() == one
    (out / "prior.safetensors").unlink()
    shutil.rmtree(out / "checkpoints")
    interrupted(out, 2, part="prior", steps=8)
    assert figures() == {"before": one["before"]}  # nothing is known of what is not there
    go(out, part="prior", steps=8, resume=True)
    assert figures()["before"] == one["before"]
    assert prints()["after"] == sha256(out / "prior.safetensors")
    assert figures()["after"]["loss"] != one["after"]["loss"]
    tensors, said = load_tensors(out / "prior.safetensors")
    save_tensors(out / "prior.safetensors", {k: 0 * x for k, x in tensors.items()}, said)
    go(out, part="prior", resume=True)
    assert prints()["after"] == sha256(out / "prior.safetensors")

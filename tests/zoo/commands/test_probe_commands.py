"""`zoo probe`, `zoo finetune` and `zoo sample --complete` on runs trained for a moment."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from labelled_files import digits, write_mnist
from PIL import Image

import zoo
from zoo.cli import main
from zoo.probing import results
from zoo.train.interrupt import Interrupted
from zoo.train.options import main as train

BERT = ["--set", "prior=imagegpt-prior-tiny-bert"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Data of four classes, and runs on it: autoregressive, masked, and one whose prior is not trained."""
    torch.set_num_threads(1)
    top = tmp_path_factory.mktemp("probing")
    data = f"mnist:{write_mnist(top / 'digits', train=240, test=40, classes=4)}"
    how = ["--model", "imagegpt-tiny", "--steps", "4", "--keep", "9", "--save-every", "2", "--sample-every", "0"]
    for name, extra in (("ar", []), ("bert", BERT)):
        assert train([*how, "--out", str(top / name), "--data", data, *extra]) == 0
    shutil.copytree(top / "ar", top / "begun")
    (top / "begun" / "prior.safetensors").unlink()
    shutil.rmtree(top / "begun" / "checkpoints")
    return top, data


def fails(capsys, *arguments):
    """Run a command that must end with code 2 and one line; return the line."""
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_probe_writes_its_table_report_and_pictures(made, capsys):
    top, data = made
    arguments = ["probe", str(top / "ar"), "--data", data, "--labels-per-class", "4", "--draws", "2"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    folder = results.place(top / "ar", "probe", data)
    report = json.loads((folder / "probe.json").read_text())
    assert [row["layer"] for row in report["layers"]] == [0, 1, 2]
    assert report["pictures"] == {"train": 216, "validation": 24, "test": 40}
    assert report["test"] == "heldout"
    assert f"{report['best']['accuracy']:.1%}" in text
    assert {p.suffix for p in folder.iterdir()} == {".json", ".png", ".safetensors"}
    assert main(["probe", str(top / "ar"), "--data", data, "--solver", "sgd", "--steps", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["solver"] == "sgd"


def test_checkpoints_make_a_curve_over_loss_and_several_runs_one_picture(made, tmp_path, capsys):
    top, data = made
    runs = [str(top / "ar"), str(top / "bert")]
    arguments = ["--data", data, "--checkpoints", "--layers", "1", "--out", str(tmp_path), "--json"]
    assert main(["probe", *runs, *arguments]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [[row["step"] for row in report["checkpoints"]] for report in reports] == [[2, 4], [2, 4]]
    ar = reports[0]["checkpoints"]
    assert ar[1]["loss"] < ar[0]["loss"] < np.log(16) + 0.01
    assert (tmp_path / "checkpoints.png").read_bytes().startswith(b"\x89PNG")


def test_finetune_leaves_a_run_and_compare_has_one_table(made, tmp_path, capsys):
    top, data = made
    for name in ("ar", "bert"):
        arguments = [
            "finetune",
            str(top / name),
            "--data",
            data,
            "--every",
            "10",
            "--steps",
            "30",
            "--lr",
            "0.01",
            "--masks",
            "3",
        ]
        assert main(arguments) == 0
        assert main(["probe", str(top / name), "--data", data, "--layers", "1", "--masks", "3"]) == 0
    out = results.place(top / "ar", "finetune", data)
    tuned = zoo.load(str(out))
    assert all(tuned.ready.values())
    assert not torch.equal(tuned.prior.token.weight, zoo.load(str(top / "ar")).prior.token.weight)
    assert {"finetune.json", "metrics.jsonl", "curves-finetune.png", "head.safetensors"} <= {
        p.name for p in out.iterdir()
    }
    assert "go on with --resume" in fails(capsys, "finetune", top / "ar", "--data", data)
    runs = [str(top / "ar"), str(top / "bert")]
    assert main(["probe", *runs, "--data", data, "--compare", "--out", str(tmp_path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"].split("\n")[0] for row in rows] == ["AR", "BERT", "BERT, masks vote"]
    assert all(0 <= row[kind] <= 1 for row in rows for kind in ("probe", "finetune"))
    assert (tmp_path / "compare.png").exists()


def test_a_stopped_finetune_says_how_to_go_on(made, monkeypatch, tmp_path, capsys):
    top, data = made

    def stopped(*_, **__):
        raise Interrupted(signal.SIGINT)

    monkeypatch.setattr("zoo.probing.finetune.finetune", stopped)
    assert main(["finetune", str(top / "ar"), "--data", data, "--out", str(tmp_path / "x")]) == 130
    assert "go on with --resume" in capsys.readouterr().err


def test_what_is_wrong_gets_one_line_and_code_2(made, capsys):
    top, data = made
    for command in ("probe", "finetune"):
        assert "is not a run folder" in fails(capsys, command, top / "none", "--data", data)
        assert "'emoji' has no class labels" in fails(capsys, command, top / "ar", "--data", "emoji")
        assert "no weights for prior" in fails(capsys, command, top / "begun", "--data", data)
        assert "download it by hand" in fails(capsys, command, top / "ar", "--data", f"cifar10:{top}")
    run = top / "ar"
    assert "layers 0 to 2" in fails(capsys, "probe", run, "--data", data, "--layers", "9")
    assert "expected numbers such as" in fails(capsys, "probe", run, "--data", data, "--layers", "first")
    assert "expected numbers such as 0,4,8, got ''" in fails(capsys, "probe", run, "--data", data, "--layers", "")
    assert "pictures to draw from" in fails(capsys, "probe", run, "--data", data, "--labels-per-class", "99")
    assert "no results on 'shapes' yet" in fails(capsys, "probe", run, "--data", "shapes", "--compare")
    assert "one of the two" in fails(capsys, "probe", run, "--data", data, "--compare", "--checkpoints")
    assert "no whole checkpoint of its prior" in fails(capsys, "probe", top / "begun", "--data", data, "--checkpoints")


def test_a_model_that_tells_no_features_is_refused(tmp_path, capsys):
    arguments = ["--model", "dalle-tiny", "--out", str(tmp_path / "d"), "--steps", "1", "--sample-every", "0"]
    assert train([*arguments, "--data", "shapes:64", "--part", "codebook"]) == 0
    assert "has no features(codes, cond)" in fails(capsys, "probe", tmp_path / "d", "--data", "shapes")


def test_a_prior_that_never_learnt_to_do_without_labels_is_refused(tmp_path, capsys):
    arguments = ["--model", "imagegpt-tiny", "--out", str(tmp_path / "told"), "--steps", "1", "--sample-every", "0"]
    assert train([*arguments, "--data", "shapes:64", "--set", "prior.reads=label"]) == 0
    for command in ("probe", "finetune"):
        assert "cond_drop = 0" in fails(capsys, command, tmp_path / "told", "--data", "shapes")


def test_complete_continues_pictures_and_says_what_it_did(made, tmp_path, capsys):
    top, _ = made
    pixels, _ = digits(2, 0)
    paths = [tmp_path / "one.png", tmp_path / "two.png"]
    for path, picture in zip(paths, pixels, strict=True):
        Image.fromarray(picture).save(path)
    out = tmp_path / "completed.png"
    arguments = ["sample", str(top / "ar"), "--complete", ", ".join(map(str, paths)), "-n", "3", "--out", str(out)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "one.png: 28 x 28 px" in text
    assert "2 pictures, the upper 8 of 16 rows given, 3 continuations" in text
    assert Image.open(out).width > 5 * 96
    assert "cannot continue a picture" in fails(capsys, "sample", top / "bert", "--complete", paths[0])
    assert "leave it out" in fails(capsys, "sample", top / "ar", "--complete", paths[0], "--rerank", "9")


def test_help_imports_no_torch():
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from zoo.cli import main
for name in ("probe", "finetune", "sample"):
    assert main([name, "--help"]) == 0
sys.exit([m for m in sys.modules if m in ("torch", "sklearn", "matplotlib")] or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    assert done.returncode == 0, done.stderr
    assert "zoo probe runs/ar runs/bert" in done.stdout

"""`zoo sweep`: the table, the picture, the file beside it, and what is refused."""

import json
import shutil

import pytest
import torch

from zoo.cli import main
from zoo.train.options import main as train


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a cascade and an autoregressive system, each trained for a moment."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("runs")
    for name in ("imagen", "dalle"):
        arguments = ["--model", f"{name}-tiny", "--out", str(folder / name), "--steps", "2", "--sample-every", "0"]
        assert train([*arguments, "--data", "shapes:64"]) == 0
    return folder


def fails(capsys, *arguments):
    """Run a command that must end with code 2 and one line; return the line."""
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


FEW = ["--captions", "4", "--pictures", "8"]


def test_two_families_over_guidance(runs, tmp_path, capsys):
    out = tmp_path / "curves.png"
    asked = ["sweep", str(runs / "imagen"), str(runs / "dalle"), "--guidance", "1,1.5", *FEW, "--out", str(out)]
    assert main([*asked, "--split", "validation,heldout"]) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines()[1:9]]
    assert [row[:4] for row in rows] == [
        [run, "own", guidance, split]
        for run in ("imagen", "dalle")
        for split in ("validation", "heldout")
        for guidance in ("1", "1.5")
    ]
    assert out.read_bytes().startswith(b"\x89PNG")
    report = json.loads(out.with_suffix(".json").read_text())
    assert len(report["rows"]) == len(report["cells"]) == 8
    assert all(0 <= row["interval"][0] <= row["accuracy"] <= row["interval"][1] <= 1 for row in report["rows"])
    assert [("difference" in row) for row in report["rows"]] == [False, True] * 4
    assert main([*asked, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["rows"] == [row for row in report["rows"] if row["split"] == "validation"]
    assert len(json.loads(out.with_suffix(".json").read_text())["cells"]) == 8


def test_ways_are_compared_on_the_first_stage(runs, tmp_path, capsys):
    out = tmp_path / "ways.png"
    ways = ["--how", "sampler=ddim steps=2", "--how", "base.sampler=ddpm base.steps=3", "--how", ""]
    assert main(["sweep", str(runs / "imagen"), *ways, "--stage", "base", *FEW, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "pictures of stage base have 16 px, and real ones are made as small; both are enlarged to 32 px" in text
    rows = json.loads(out.with_suffix(".json").read_text())["rows"]
    assert [row["how"] for row in rows] == ["sampler=ddim steps=2", "base.sampler=ddpm base.steps=3", "own"]
    assert len({row["distance"] for row in rows}) == 3
    assert rows[1]["difference"]["to"] == {"how": "sampler=ddim steps=2", "guidance": None}


def test_pictures_of_ones_own_have_distances_alone(runs, tmp_path, capsys):
    from PIL import Image

    for i in range(30):
        Image.new("RGB", (32, 32), (8 * i, 255 - 8 * i, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a plain colour")
    out = tmp_path / "out" / "sweep.png"
    data = ["--data", f"folder:{tmp_path}", "--split", "train"]
    assert main(["sweep", str(runs / "dalle"), *data, "--guidance", "1,2", *FEW, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "accuracy" not in text
    assert "points" not in text
    assert [len(line.split()) for line in text.splitlines()[1:3]] == [5, 5]
    assert out.exists()


def test_what_is_wrong_is_said(runs, tmp_path, capsys):
    imagen, dalle, undropped = runs / "imagen", runs / "dalle", tmp_path / "undropped"
    shutil.copytree(imagen, undropped)
    told = (undropped / "run.toml").read_text()
    assert "cond_drop = 0.1" in told
    (undropped / "run.toml").write_text(told.replace("cond_drop = 0.1", "cond_drop = 0.0"))
    part = tmp_path / "part"
    assert train(["--model", "clip-tiny", "--out", str(part), "--steps", "1", "--data", "shapes:64"]) == 0
    (tmp_path / "other.json").write_text("{}")
    capsys.readouterr()
    for arguments, said in (
        ([tmp_path], "is not a run folder"),
        ([part], "alone; a whole system is needed"),
        ([imagen, "--how", "step=3"], f"{imagen}: step: no such field; did you mean 'steps'"),
        ([imagen, "--how", "steps"], "field=value"),
        ([dalle, imagen, "--how", "steps=3"], f"--how: '{dalle}' (dalle-tiny) has no denoisers; leave --how out"),
        ([dalle, "--stage", "base"], "leave --stage out"),
        ([imagen, "--stage", "sr33"], "did you mean 'sr32'"),
        ([imagen, undropped, "--guidance", "1,2"], f"2 needs cond_drop > 0 in training; base of '{undropped}' had 0"),
        ([imagen, "--guidance", "1,x"], "--guidance: expected numbers such as 1,1.5,2,3, got '1,x'"),
        ([imagen, "--guidance", "-1"], "--guidance: numbers are 0 or more"),
        ([imagen, "--split", "test"], "test"),
        ([imagen, "--distance", "pixel"], "did you mean 'pixels'"),
        ([imagen, "--distance", "reranker"], "has no reranker"),
        ([imagen, dalle, "--distance", "reranker"], "cannot be compared"),
        ([imagen, "--out", tmp_path / "other.png"], "other.json is there and holds no results"),
        ([imagen, "--out", tmp_path / "new.jpg"], "ends in .png"),
    ):
        assert said in fails(capsys, "sweep", "--out", tmp_path / "new.png", *arguments, *FEW)
    assert not list(tmp_path.glob("new*"))

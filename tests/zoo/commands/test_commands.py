"""The command line: what it prints, what it refuses, and with which exit code."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import main
from zoo.commands.catalogue import human
from zoo.train.options import main as train


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """A whole system, trained for a moment."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "tiny"
    arguments = ["--model", "dalle-tiny", "--out", str(out), "--steps", "2", "--sample-every", "0"]
    assert train([*arguments, "--data", "shapes:64"]) == 0
    return out


def fails(capsys, *arguments):
    """Run a command that must end with code 2 and one line; return the line."""
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_list_prints_every_card_and_json_is_cards(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert main(["list", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)
    assert {card["name"] for card in cards} == {card.name for card in zoo.list_models()}
    assert all(card["name"] in text for card in cards)


def test_list_by_kind(capsys):
    assert main(["list", "--kind", "reranker", "--json"]) == 0
    assert {card["kind"] for card in json.loads(capsys.readouterr().out)} == {"reranker"}
    assert "did you mean 'prior'" in fails(capsys, "list", "--kind", "priors")


def test_info_counts_parts_and_follows_overrides(capsys):
    assert main(["info", "dalle-tiny", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["params"] == sum(part["params"] for part in facts["parts"].values())
    assert main(["info", "dalle-tiny", "--set", "prior.depth=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"]["prior"]["params"] < facts["parts"]["prior"]["params"]
    assert main(["info", "dalle-tiny"]) == 0
    assert "prior.depth = " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["info", "dalel-tiny"], "did you mean 'dalle-tiny'"),
        (["info", "dalle-tiny", "--set", "prior.dept=2"], "prior.dept: no such field; did you mean 'depth'"),
        (["info", "dalle-tiny", "--set", "prior.depth=two"], "prior.depth: expected an integer"),
        (["sample", "runs/none", "a cat"], "is not a run folder"),
        (["evaluate", "runs/none"], "is not a run folder"),
        (["nonsense"], "No such command"),
        (["list", "--nonsense"], "No such option"),
    ],
)
def test_what_is_wrong_gets_one_line_and_code_2(capsys, arguments, line):
    assert line in fails(capsys, *arguments)


def test_plugins_and_doctor_name_every_plugin(capsys):
    assert main(["plugins", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {"zoo", "zoo_dalle", "zoo_dvae"} <= {row["name"] for row in rows}
    assert {row["status"] for row in rows if row["distribution"] == "image-zoo"} == {"ok"}


def test_sample_writes_a_grid_that_the_seed_decides(run, tmp_path, capsys):
    prompts = ["a red circle above a blue square", "a small green square at the top left"]
    for name in ("one.png", "two.png"):
        arguments = ["sample", str(run), *prompts, "-n", "2", "--rerank", "4", "--seed", "3", "--out", tmp_path / name]
        assert main([str(a) for a in arguments]) == 0
    one, two = (Image.open(tmp_path / name) for name in ("one.png", "two.png"))
    assert one.tobytes() == two.tobytes()
    assert one.width >= 2 * 96


def test_sample_refuses_what_it_cannot_do(run, tmp_path, capsys):
    out = tmp_path / "grid.png"
    out.write_text("mine")
    assert "fewer candidates" in fails(capsys, "sample", run, "a cat", "-n", "4", "--rerank", "2", "--out", out)
    assert out.read_text() == "mine"


def test_a_long_caption_is_cut_with_a_warning_that_says_what(run, tmp_path, capsys):
    assert main(["sample", str(run), "a red circle " * 40, "-n", "1", "--out", str(tmp_path / "a.png")]) == 0
    assert "truncated" in capsys.readouterr().err


def test_evaluate_writes_its_report(run, capsys):
    assert main(["evaluate", str(run), "--captions", "4", "--candidates", "1,2", "--pictures", "8", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((run / "evaluation.json").read_text())
    assert set(report["accuracy"]["heldout"]) == {"best_of_1", "best_of_2"}
    assert 1 <= report["codebook"]["perplexity"] <= report["codebook"]["used"] <= report["codebook"]["vocab_size"]


def test_a_truncated_part_is_named(run, tmp_path, capsys):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(run, broken)
    part = broken / "codebook.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    assert "codebook.safetensors" in fails(capsys, "sample", broken, "a cat")


def test_a_part_trained_on_another_is_refused_with_the_command_that_mends_it(run, tmp_path, capsys):
    import shutil

    mixed = tmp_path / "mixed"
    shutil.copytree(run, mixed)
    generator = zoo.load(str(run))
    from zoo.runs import RunFolder

    with torch.no_grad():
        next(generator.parts["codebook"].parameters()).add_(1)
    RunFolder(mixed).save_part("codebook", generator.parts["codebook"])
    line = fails(capsys, "sample", mixed, "a cat")
    assert "'prior' was trained on another 'codebook'" in line
    assert "--part prior" in line


def test_counts_are_short():
    assert [human(n) for n in (0, 12, 1500, 2_500_000, 12_390_452_998)] == ["-", "12", "1.5k", "2.5M", "12.4B"]


def test_a_full_run_loads_ready(run: Path):
    assert all(zoo.load(str(run)).ready.values())

"""`zoo plan` as a command: its table, its JSON, its errors."""

import json

import pytest

import zoo
from zoo.cli import main

CLUSTER = ["--devices", "1024", "--per-node", "8", "--device", "v100-16gb"]


def printed(capsys, *arguments):
    assert main(["plan", *arguments]) == 0
    return capsys.readouterr().out


def test_the_table_says_what_fits(capsys):
    paper = printed(capsys, "dalle-12b", *CLUSTER, "--reducer", "powersgd-dalle")
    assert "storage paper" in paper
    assert "v100-16gb: fits" in paper
    assert "saves 85.9 % of the compressed matrices, rank 896, 83.1 % of all gradients" in paper
    other = printed(capsys, "dalle-12b", *CLUSTER, "--storage", "deepspeed")
    assert "DOES NOT FIT" in other
    assert "sharded over all their devices" in other


def test_the_json_is_the_plans_own(capsys):
    made = json.loads(printed(capsys, "dalle", "--devices", "2", "--batch", "32", "--set", "prior.depth=2", "--json"))
    assert made == zoo.plan("dalle", devices=2, batch=32, overrides=["prior.depth=2"]).json()
    part = json.loads(printed(capsys, "dalle", "--part", "codebook", "--json"))
    assert part["stage"]["part"] == "codebook"


def test_every_option_reaches_the_plan(capsys):
    said = (
        "--devices 4 --per-node 2 --zero 3 --shard all --precision bf16 --batch 64 --accumulate 2 --storage deepspeed "
        "--recompute --buckets reduce=1e6,live=3e6"
    )
    job = json.loads(printed(capsys, "dalle", *said.split(), "--json"))["job"]
    assert (job["devices"], job["per_node"], job["zero"], job["shard"]) == (4, 2, 3, "all")
    assert (job["precision"], job["batch"], job["accumulate"], job["storage"]) == ("bf16", 64, 2, "deepspeed")
    assert job["recompute"] is True
    assert (job["buckets"]["reduce"], job["buckets"]["live"]) == (1_000_000, 3_000_000)


@pytest.mark.parametrize(("arguments", "line"), [
    (["dalel"], "did you mean 'dalle'"),
    (["dalle", "--devices", "9", "--per-node", "8"], "make no whole machines of 8"),
    (["dalle", "--batch", "7", "--devices", "2"], "does not divide"),
    (["dalle", "--device", "v100-16gb,"], "unknown"),
    (["dalle", "--storage", "paper", "--zero", "1"], "take --zero 3"),
    (["dalle", "--buckets", "reduc=3"], "did you mean 'reduce'"),
    (["dalle", "--buckets", "reduce=many"], "is not a number of values"),
    (["dalle", "--buckets", "reduce=0"], "reduce"),
    (["dalle", "--zero", "4"], "--zero"),
])  # fmt: skip
def test_what_is_wrong_gets_one_line_and_code_2(capsys, arguments, line):
    assert main(["plan", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert line in said[0]

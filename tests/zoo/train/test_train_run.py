"""Whole commands on real parts, through the registry."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import short_runs
from short_runs import equal, interrupted, saved

import zoo
from zoo.errors import BadRun, ConfigError, NotReady, PartMismatch, UnknownName
from zoo.train.metrics import read_rows
from zoo.train.options import TrainOptions, main
from zoo.train.run import run

ROOT = Path(__file__).parents[3]
SMALL = {**short_runs.SMALL, "steps": 6}


def go(model, out, **changes):
    return short_runs.go(out, model, **{"steps": 6, **changes})


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run whose codebook is trained."""
    folder = tmp_path_factory.mktemp("runs") / "begun"
    go("dalle-tiny", folder, part="codebook", sample_every=3)
    return folder


def copied(folder, to):
    subprocess.run(["cp", "-r", str(folder), str(to)], check=True)
    return to


def test_a_part_alone_leaves_what_a_run_promises(begun):
    assert {p.name for p in begun.iterdir()} == {
        "run.toml", "metrics.jsonl", "checkpoints", "samples", "codebook.safetensors", "curves-codebook.png",
    }  # fmt: skip
    rows = read_rows(begun / "metrics.jsonl")
    assert [(row["part"], row["step"]) for row in rows] == [("codebook", s) for s in range(1, 7)]
    assert all({"loss", "seconds", "lr", "grad_norm"} <= row.keys() for row in rows)
    names = sorted(p.name for p in (begun / "samples").iterdir())
    assert names == ["codebook-00000003.png", "codebook-00000006.png"]
    ready = zoo.load(str(begun)).ready
    assert ready["codebook"]
    assert not ready["prior"]


def test_the_rest_follows_in_order_with_codes_stored_once(begun, tmp_path):
    folder = copied(begun, tmp_path / "all")
    frozen = (folder / "codebook.safetensors").read_bytes()
    run(TrainOptions(model="dalle-tiny", out=folder, steps=8, batch=8, sample_every=8))  # data: what it was begun with
    assert (folder / "codebook.safetensors").read_bytes() == frozen
    parts = list(dict.fromkeys(row["part"] for row in read_rows(folder / "metrics.jsonl")))
    assert [p for p in parts if "tokenizer" not in p] == ["codebook", "prior", "reranker"]
    assert "tokenizer" in parts
    assert len(list((folder / "store").glob("*.safetensors"))) == 1
    assert (folder / "samples" / "prior-00000008.png").exists()
    g = zoo.load(str(folder))
    assert all(g.ready.values())
    assert g.generate(["a red circle"], images_per_prompt=2, rerank=3).shape == (2, 3, 32, 32)


def test_parts_in_one_command_or_one_by_one_are_the_same(begun, tmp_path):
    go("dalle-tiny", tmp_path / "once")
    apart = copied(begun, tmp_path / "apart")
    go("dalle-tiny", apart, part="reranker")
    go("dalle-tiny", apart, part="prior")
    for role in ("codebook", "tokenizer", "prior", "reranker"):
        assert equal(saved(tmp_path / "once", role), saved(apart, role)), role


def test_a_finished_part_is_not_trained_again_unasked(begun, tmp_path):
    folder = copied(begun, tmp_path / "run")
    before = (folder / "codebook.safetensors").read_bytes()
    with pytest.raises(BadRun, match="codebook trained already"):
        go("dalle-tiny", folder, part="codebook")
    go("dalle-tiny", folder, part="codebook", resume=True)
    assert (folder / "codebook.safetensors").read_bytes() == before


def test_imported_weights_are_not_trained_over(tmp_path):
    go("dalle-tiny", tmp_path / "run", part="reranker")
    (tmp_path / "run" / "reranker.tokenizer.safetensors").unlink()  # as a public CLIP comes: without its vocabulary
    before = (tmp_path / "run" / "reranker.safetensors").read_bytes()
    with pytest.raises(
        BadRun, match=r"reranker.safetensors has weights, and 'reranker.tokenizer', which it reads, has"
    ):
        go("dalle-tiny", tmp_path / "run", part="reranker", resume=True)
    assert (tmp_path / "run" / "reranker.safetensors").read_bytes() == before


def test_a_part_on_an_untrained_one_names_the_command(tmp_path):
    with pytest.raises(NotReady, match=rf"--model dalle-tiny --part codebook --out {tmp_path}"):
        go("dalle-tiny", tmp_path / "run", part="prior")


def test_stopped_and_resumed_equals_never_stopped(begun, tmp_path):
    interrupted(tmp_path / "run", 4, model="dvae-tiny", steps=6)
    with pytest.raises(BadRun, match="add --resume"):
        go("dvae-tiny", tmp_path / "run")
    go("dvae-tiny", tmp_path / "run", resume=True)
    go("dvae-tiny", tmp_path / "whole")
    assert equal(saved(tmp_path / "run", "codebook"), saved(tmp_path / "whole", "codebook"))


def test_a_checkpoint_of_other_settings_is_refused_and_says_which(tmp_path):
    interrupted(tmp_path, 2, model="dvae-tiny", steps=6)
    with pytest.raises(BadRun, match=r"made with recipe.batch=8, not 16; resume with the same"):
        go("dvae-tiny", tmp_path, resume=True, batch=16)
    with pytest.raises(BadRun, match=r"config\.codebook\.kl_weight"):
        go("dvae-tiny", tmp_path, resume=True, set=("kl_weight=3.5",))


def test_killed_for_real_and_resumed_bit_for_bit(tmp_path):
    """The command itself, killed with SIGKILL wherever it is: at import, in a step, in a save."""
    folder, rest = tmp_path / "killed", random.Random(3)
    arguments = ["--model", "dvae-tiny", "--data", "shapes:n=48", "--steps", "40", "--batch", "8", "--save-every", "3"]
    arguments += ["--sample-every", "0", "--resume"]
    command = [sys.executable, str(ROOT / "scripts" / "train.py"), *arguments, "--out", str(folder)]
    path = os.pathsep.join([str(ROOT), str(ROOT / "plugins")])
    for _ in range(2):
        child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL)
        start = len(read_rows(folder / "metrics.jsonl"))
        while len(read_rows(folder / "metrics.jsonl")) <= start + 5 and child.poll() is None:
            time.sleep(0.01)
        time.sleep(rest.random() / 10)
        child.kill()
        assert child.wait() == -signal.SIGKILL
    assert main([*arguments, "--out", str(folder)]) == 0
    assert main([*arguments, "--out", str(tmp_path / "whole")]) == 0
    assert equal(saved(folder, "codebook"), saved(tmp_path / "whole", "codebook"))
    losses = [[(r["step"], r["loss"]) for r in read_rows(f / "metrics.jsonl")] for f in (folder, tmp_path / "whole")]
    assert losses[0] == losses[1]


def test_a_run_goes_on_with_its_own_settings(begun, tmp_path):
    folder = copied(begun, tmp_path / "run")
    go("dalle-tiny", folder, part="reranker", steps=2, set=("prior.depth=1",))
    go("dalle-tiny", folder, part="prior", steps=2)
    assert zoo.load(str(folder)).config.prior.depth == 1


def test_a_codebook_of_another_run_is_taken_over(begun, tmp_path):
    go("dalle-tiny", tmp_path / "run", part="prior", steps=2, set=(f"codebook={begun}",))
    assert equal(saved(tmp_path / "run", "codebook"), saved(begun, "codebook"))
    assert zoo.load(str(tmp_path / "run")).ready["prior"]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"model": "dvae-tinny"}, UnknownName, "dvae-tiny"),
        ({"part": "prier"}, UnknownName, "part 'prier' is unknown; did you mean 'prior'"),
        ({"data": "shaeps"}, UnknownName, "shapes"),
        ({"engine": "deepspede"}, UnknownName, "engine 'deepspede'"),
        ({"zero": 3}, ConfigError, "--engine deepspeed"),
        ({"precision": "fp16"}, ConfigError, "--precision fp16"),
        ({"reducer": "powersdg"}, UnknownName, "reducer 'powersdg'"),
        ({"set": ("prior.dept=2",)}, ConfigError, "did you mean 'depth'"),
        ({"set": ("prior.depth",)}, ConfigError, "not of the form"),
        ({"batch": 9, "accumulate": 2, "part": "codebook"}, ConfigError, "try --batch 8"),
        ({"part": "reranker", "accumulate": 2}, ConfigError, "reranker: .*cannot be split"),
        ({"model": "dalle-prior-tiny"}, PartMismatch, "has no picture size of its own"),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, changes, error, said):
    with pytest.raises(error, match=said) as caught:
        run(TrainOptions(**{"model": "dalle-tiny", "out": tmp_path, **SMALL, **changes}))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--model"),
        (["--model", "nothing-like-it"], "nothing-like-it"),
        (["--model", "dvae-tiny", "--steps", "0"], "--steps"),
        (["--model", "dvae-tiny", "--stepz", "3"], "--steps"),
        (["--model", "dvae-tiny", "--precision", "fp8"], "fp32"),
        (["--model", "dvae-tiny", "--engine", "deepsped"], "deepspeed"),
        (["--model", "dvae-tiny", "--data", "folder:/no/such/place"], "/no/such/place"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line_and_exit_code_2(tmp_path, capsys, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
    assert not list(tmp_path.iterdir())


def test_help_teaches_and_launchers_may_add_their_rank(tmp_path, capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "--part" in text
    assert "zoo sample" in text
    assert "--local_rank" not in text
    common = ["--model", "dvae-tiny", "--data", "shapes:n=16", "--steps", "1", "--batch", "4", "--sample-every", "0"]
    assert main([*common, "--out", str(tmp_path / "a"), "--local_rank=0"]) == 0
    assert main([*common, "--out", str(tmp_path / "b"), "--local-rank", "0"]) == 0


class Watcher:
    """A plugin with training hooks; one of them always fails."""

    def __init__(self):
        self.seen = []

    def hooks(self):
        from zoo.hookspecs import hookimpl

        watcher = self

        class Hooks:
            @hookimpl
            def zoo_train_start(self, run):
                watcher.seen.append(("start", run.stage, run.folder.name))

            @hookimpl
            def zoo_train_step(self, run, step, metrics):
                watcher.seen.append(("step", step, json.dumps(metrics["loss"]) != "null"))
                raise RuntimeError("this hook is broken")

            @hookimpl
            def zoo_train_end(self, run):
                watcher.seen.append(("end",))

        return Hooks()


def test_hooks_are_called_and_a_broken_one_stops_nothing(tmp_path):
    from zoo import plugins

    watcher = Watcher()
    manager, hooks = plugins.installed().manager, watcher.hooks()
    manager.register(hooks, name="watcher")
    try:
        with pytest.warns(UserWarning, match="watcher.*zoo_train_step.*this hook is broken") as warned:
            go("dvae-tiny", tmp_path / "run", steps=3)
    finally:
        manager.unregister(hooks)
    assert watcher.seen == [
        ("start", "codebook", "run"), ("step", 1, True), ("step", 2, True), ("step", 3, True), ("end",),
    ]  # fmt: skip
    assert len([w for w in warned if "watcher" in str(w.message)]) == 1


def test_a_part_that_is_only_fitted_trains_alone(tmp_path):
    folder = run(TrainOptions(model="bpe-tiny", data="shapes:64", out=tmp_path / "run"))
    assert folder.finished("tokenizer")
    tokenizer = zoo.load(str(tmp_path / "run"))
    assert tokenizer.ready
    assert tokenizer.decode(tokenizer.encode(["a red circle"])[0]) == ["a red circle"]

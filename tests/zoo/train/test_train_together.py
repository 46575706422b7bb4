"""A stage that trains two parts: both move, each says with which it belongs, and both are trained again together."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from short_runs import equal, go, saved

import zoo
from zoo.errors import BadRun
from zoo.registry import build_system
from zoo.resolution import resolve_tree
from zoo.runs import RunFolder
from zoo.weights import read_metadata

SMALL = {"model": "imagen-tiny", "steps": 12}


def trained_on(folder, role):
    return read_metadata(folder / f"{role}.safetensors")["trained_on"]


def test_the_text_encoder_moves_with_the_base(cascade):
    fresh = build_system(*resolve_tree("imagen-tiny"), seed=0)
    for role in ("text_encoder", "base"):
        before, after = fresh.parts[role].state_dict(), saved(cascade, role)
        still = [name for name, x in before.items() if x.numel() > 1 and torch.equal(x, after[name])]
        assert not still, (role, still)


def test_the_base_says_with_which_text_encoder_it_has_learnt(cascade, tmp_path):
    run = RunFolder(cascade)
    assert trained_on(cascade, "base")["text_encoder"] == run.fingerprint("text_encoder")
    assert trained_on(cascade, "sr32")["text_encoder"] == run.fingerprint("text_encoder")
    assert set(trained_on(cascade, "text_encoder")) == {"tokenizer"}
    other, mixed = tmp_path / "other", tmp_path / "mixed"
    shutil.copytree(cascade, mixed)
    go(other, model="imagen-tiny", steps=1, part="base", seed=1)
    assert equal(saved(other, "tokenizer"), saved(cascade, "tokenizer"))
    shutil.copyfile(other / "text_encoder.safetensors", mixed / "text_encoder.safetensors")
    with pytest.raises(BadRun, match="'base' was trained on another 'text_encoder' than the one here"):
        zoo.load(str(mixed))


def test_what_is_trained_again_begins_anew(cascade, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(cascade, folder)
    with pytest.raises(BadRun, match="base trained already") as error:
        go(folder, **SMALL, part="base")
    paths = re.search(r"to train again: rm -r (.*)$", str(error.value))[1].split()
    named = [folder / "text_encoder.safetensors", folder / "base.safetensors", folder / "checkpoints"]
    assert paths == list(map(str, named))
    for path in paths[:2]:
        Path(path).unlink()
    shutil.rmtree(paths[2])
    go(folder, **SMALL, part="base")
    for role in ("text_encoder", "base"):
        assert equal(saved(folder, role), saved(cascade, role))
    assert zoo.load(str(folder)).ready["sr32"]


def test_a_stage_above_starts_from_a_run_with_all_below(cascade, tmp_path, few_measures):
    go(tmp_path / "run", model="imagen-tiny", steps=1, part="sr32", init=str(cascade))
    for role in ("tokenizer", "text_encoder", "base"):
        assert equal(saved(tmp_path / "run", role), saved(cascade, role))
    assert all(zoo.load(str(tmp_path / "run")).ready.values())

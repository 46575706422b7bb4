"""Training from existing weights: what starts from where, what is taken, what is refused."""

import json
import shutil
import tomllib
from contextlib import contextmanager

import pytest
import torch
from PIL import Image
from short_runs import equal, go, interrupted, saved

import zoo
from zoo.errors import BadRun, BadWeights, ConfigError, PartMismatch
from zoo.train import initial, one
from zoo.train.metrics import read_rows
from zoo.train.options import main
from zoo.train.world import World
from zoo.weights import load_tensors, save_tensors, sha256

PARTS = ("tokenizer", "codebook", "prior", "reranker.tokenizer", "reranker")


pytestmark = pytest.mark.usefixtures("few_measures")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of pictures whose captions have other words."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(24):
        Image.new("RGB", (32, 32), (10 * i, 0, 255 - 10 * i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a plain colour, number {i}")
    return f"folder:{folder}"


def first_state(folder, part="prior"):
    """The tensors of the checkpoint of no updates."""
    (path,) = (folder / "checkpoints" / part / "step-00000000").glob("state-*")
    return load_tensors(path)[0]


def test_a_prior_starts_from_the_runs_and_all_else_is_taken(base, pictures, tmp_path):
    out = tmp_path / "tuned"
    go(out, part="prior", init=str(base), data=pictures, save_every=4, set=("prior.train.ema=0.5",))
    for role in ("tokenizer", "codebook", "reranker", "reranker.tokenizer"):
        assert (out / f"{role}.safetensors").read_bytes() == (base / f"{role}.safetensors").read_bytes(), role
    state, there = first_state(out), saved(base, "prior")
    for kind in ("weights", "average"):
        found = {k.removeprefix(f"{kind}:prior."): x for k, x in state.items() if k.startswith(f"{kind}:")}
        assert found
        assert all(torch.equal(x, there[name].flatten()) for name, x in found.items())
    assert not equal(saved(out, "prior"), there)
    said = tomllib.loads((out / "run.toml").read_text())
    assert said["init"] == {"path": str(base), "parts": {"prior": sha256(base / "prior.safetensors")}}
    g = zoo.load(str(out))
    assert all(g.ready.values())
    assert g.tokenizer.decode(g.tokenizer.encode(["a red circle"])[0]) == ["a red circle"]


def test_no_learning_rate_gives_the_weights_back(base, tmp_path):
    go(tmp_path / "run", part="prior", init=str(base), set=("prior.train.lr=1e-30", "prior.train.weight_decay=0"))
    one, two = saved(tmp_path / "run", "prior"), saved(base, "prior")
    assert all(torch.allclose(one[name], x, atol=1e-12, rtol=0) for name, x in two.items())


def test_every_part_that_is_trained_starts_from_its_own(base, tmp_path, caplog):
    caplog.set_level("INFO", "zoo.train")
    go(tmp_path / "run", init=str(base), save_every=4)
    for part in ("codebook", "prior", "reranker"):
        state = {k: x for k, x in first_state(tmp_path / "run", part).items() if k.startswith(f"weights:{part}.")}
        there = saved(base, part)
        assert all(torch.equal(x, there[k.removeprefix(f"weights:{part}.")].flatten()) for k, x in state.items()), part
    assert equal(saved(tmp_path / "run", "tokenizer"), saved(base, "tokenizer"))
    parts = json.loads((tmp_path / "run" / "finetuning.json").read_text())["parts"]
    assert set(parts) == {"codebook", "prior", "reranker"}
    assert {"psnr", "loss"} <= parts["codebook"]["after"].keys()
    assert all(zoo.load(str(tmp_path / "run")).ready.values())


def test_what_was_trained_on_a_part_that_changes_is_left_out(base, tmp_path):
    out = tmp_path / "run"
    go(out, part="codebook", init=str(base))
    assert not (out / "prior.safetensors").exists()
    assert (out / "reranker.safetensors").exists()
    assert not zoo.load(str(out)).ready["prior"]
    go(out, part="prior", init=str(base))  # and goes on from the same place when its turn comes
    assert set(tomllib.loads((out / "run.toml").read_text())["init"]["parts"]) == {"codebook", "prior"}
    assert all(zoo.load(str(out)).ready.values())


@pytest.mark.parametrize("again", [False, True])
def test_resumed_it_goes_on_and_does_not_start_over(base, tmp_path, again):
    source = tmp_path / "source"
    shutil.copytree(base, source)
    how = {"part": "prior", "steps": 6}
    go(tmp_path / "whole", init=str(source), **how)
    interrupted(tmp_path / "run", 3, init=str(source), **how)
    before = json.loads((tmp_path / "run" / "finetuning.json").read_text())
    with pytest.raises(BadRun, match="add --resume"):
        go(tmp_path / "run", init=str(source), **how)
    shutil.rmtree(source)  # what it started from is not needed any more
    go(tmp_path / "run", resume=True, init=str(source) if again else None, **how)
    assert equal(saved(tmp_path / "run", "prior"), saved(tmp_path / "whole", "prior"))
    assert [r["step"] for r in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    report = json.loads((tmp_path / "run" / "finetuning.json").read_text())
    assert report["parts"]["prior"]["before"] == before["parts"]["prior"]["before"]
    assert "after" in report["parts"]["prior"]
    assert tomllib.loads((tmp_path / "run" / "run.toml").read_text())["init"]["path"] == str(source)


def test_a_stage_that_had_not_begun_still_starts_from_there(base, tmp_path):
    interrupted(tmp_path / "run", 2, init=str(base))  # in the codebook's turn
    go(tmp_path / "run", resume=True)
    go(tmp_path / "whole", init=str(base))
    for role in PARTS:
        assert equal(saved(tmp_path / "run", role), saved(tmp_path / "whole", role)), role


def test_a_source_that_has_changed_is_refused(base, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(base, source)
    interrupted(tmp_path / "run", 2, init=str(source))
    tensors, said = load_tensors(source / "prior.safetensors")
    save_tensors(source / "prior.safetensors", {k: x + 1 for k, x in tensors.items()}, said)
    with pytest.raises(BadRun, match="it has changed since"):
        go(tmp_path / "run", resume=True)


def damaged(out, source):
    """Begin a run whose one checkpoint, that of no updates, has a wrong bit afterwards."""
    interrupted(out, 2, part="prior", init=str(source))
    first, *later = sorted((out / "checkpoints" / "prior").iterdir())
    for place in later:
        shutil.rmtree(place)
    (path,) = first.glob("state-*")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_goes_back_to_the_source_and_not_to_new_weights(base, whole, tmp_path, caplog):
    source = tmp_path / "source"
    shutil.copytree(base, source)
    damaged(tmp_path / "run", source)
    caplog.clear()
    source.rename(tmp_path / "away")
    with pytest.raises(BadRun, match="was begun from it: say with --init where it is now"):
        go(tmp_path / "run", part="prior", resume=True)
    go(tmp_path / "run", part="prior", resume=True, init=str(tmp_path / "away"))
    assert equal(saved(tmp_path / "run", "prior"), saved(whole, "prior"))
    lines = [r.getMessage() for r in caplog.records if "is not whole" in r.getMessage()]
    assert lines
    assert all("is damaged); there is no whole one" in line for line in lines)
    assert [r["step"] for r in read_rows(tmp_path / "run" / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_source_that_has_lost_the_weights_is_not_made_up_for(base, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(base, source)
    damaged(tmp_path / "run", source)
    (source / "prior.safetensors").unlink()
    with pytest.raises(BadRun, match="has lost the weights that 'prior' was begun from"):
        go(tmp_path / "run", part="prior", resume=True)


def test_a_checkpoint_that_breaks_after_it_was_looked_at_is_an_error(base, tmp_path, monkeypatch):
    damaged(tmp_path / "run", base)
    monkeypatch.setattr(initial, "_begun", lambda *_: True)
    with pytest.raises(BadRun, match="no checkpoint of 'prior' is whole any more"):
        go(tmp_path / "run", part="prior", resume=True)


def test_a_relative_source_is_the_same_from_anywhere(base, whole, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "else").mkdir()
    shutil.copytree(base, tmp_path / "runs" / "base")
    out = tmp_path / "runs" / "tuned"
    monkeypatch.chdir(tmp_path)
    damaged(out, "runs/base")
    for name in ("base", "./base", "base/", tmp_path / "runs" / "base", tmp_path / "moved", tmp_path / "none", None):
        copy = tmp_path / "runs" / "copy"
        shutil.copytree(out, copy)
        here = tmp_path / "runs" if isinstance(name, str) else tmp_path / "else"
        monkeypatch.chdir(here)
        if name == tmp_path / "none":
            with pytest.raises(BadRun, match="neither a run folder"):
                go(copy, part="prior", resume=True, init=str(name))
        elif name == tmp_path / "moved":
            (tmp_path / "runs" / "base").rename(name)
            go(copy, part="prior", resume=True, init=str(name))
            name.rename(tmp_path / "runs" / "base")
        else:
            go(copy, part="prior", resume=True, init=None if name is None else str(name))
        if (copy / "prior.safetensors").exists():
            assert equal(saved(copy, "prior"), saved(whole, "prior")), name
            path = tomllib.loads((copy / "run.toml").read_text())["init"]["path"]
            assert path == (str(name) if name == tmp_path / "moved" else "runs/base")
        shutil.rmtree(copy)


def test_other_weights_are_another_source_and_a_lost_one_is_not_needed(base, whole, tmp_path):
    out = tmp_path / "run"
    interrupted(out, 2, part="prior", init=str(base))
    with pytest.raises(BadRun, match=r"was begun with --init .*, not "):
        go(out, part="prior", resume=True, init=str(whole))  # its prior is another
    with pytest.raises(BadRun, match=r"was begun with --init .*, not "):
        go(out, part="prior", resume=True, init=str(base / "codebook.safetensors"))
    go(out, part="prior", resume=True, init=str(tmp_path / "gone"))
    assert equal(saved(out, "prior"), saved(whole, "prior"))
    assert tomllib.loads((out / "run.toml").read_text())["init"]["path"] == str(base)


def test_the_weights_are_written_while_nobody_waits_in_a_collective(base, tmp_path, monkeypatch):
    """What the first process does alone takes as long as it takes; see `zoo.train.world.first`."""
    turns, wrote = [], []

    class Alone(World):
        @contextmanager
        def alone(self):
            turns.append(1)
            yield
            turns.pop()

    def begin(job, start):
        job.engine.world = Alone()
        return begin_from(job, start)

    begin_from, write = initial.begin_from, initial._write
    monkeypatch.setattr(one, "begin_from", begin)
    monkeypatch.setattr(initial, "_write", lambda *given: wrote.append(len(turns)) or write(*given))
    go(tmp_path / "run", part="prior", init=str(base))
    assert wrote == [1]


def test_a_file_starts_the_one_part_that_is_trained(base, tmp_path):
    alone = tmp_path / "weights" / "x.safetensors"
    alone.parent.mkdir()
    save_tensors(alone, {name: x.double() for name, x in saved(base, "codebook").items()})
    out = tmp_path / "run"
    go(out, model="dvae-tiny", init=str(alone), save_every=4)
    found, there = first_state(out, "codebook"), saved(base, "codebook")
    assert all(torch.equal(found[f"weights:codebook.{name}"], x.flatten()) for name, x in there.items())
    with pytest.raises(ConfigError, match="of one part, and this command trains codebook, prior, reranker"):
        go(tmp_path / "other", init=str(alone))


def test_a_file_of_a_prior_needs_the_tokenizer_it_learnt_with(base, tmp_path):
    file = str(base / "prior.safetensors")
    with pytest.raises(PartMismatch, match=r"brings no 'tokenizer'.*add --set tokenizer=RUN"):
        go(tmp_path / "run", part="prior", init=file, set=(f"codebook={base}",))
    assert not (tmp_path / "run").exists()
    go(tmp_path / "run", part="prior", init=file, set=(f"codebook={base}", f"tokenizer={base}"))
    assert equal(saved(tmp_path / "run", "tokenizer"), saved(base, "tokenizer"))


def test_another_tokenizer_than_the_one_it_learnt_with_is_refused(base, pictures, tmp_path):
    other = tmp_path / "bpe"
    go(other, model="bpe-tiny", data=pictures, steps=None, batch=None)
    with pytest.raises(PartMismatch, match="learnt with another 'tokenizer'"):
        go(tmp_path / "run", part="prior", init=str(base), set=(f"tokenizer={other}",))


def test_a_run_is_model_and_start_at_once(base, tmp_path):
    wide = tmp_path / "wide"
    go(wide, set=("prior.width=40", "prior.heads=4"))
    go(tmp_path / "run", model=str(wide), init=str(wide), part="prior")
    assert zoo.load(str(tmp_path / "run")).config.prior.width == 40


@pytest.mark.parametrize(
    ("changes", "error", "line"),
    [
        ({"set": ("prior.width=40", "prior.heads=4")}, ConfigError,
         r"prior.width is 40 here and \d+ there, prior.heads is 4 here and \d there: "
         r"add --set prior.width=\d+ --set prior.heads=\d$"),
        ({"set": ("codebook=vqvae-tiny",)}, PartMismatch, "prior.vocab_size is .* decide"),
        ({"part": "codebook", "set": ("codebook=vqvae-tiny",)}, PartMismatch,
         "codebook is vqvae-tiny here and dvae-tiny there: add --set codebook=dvae-tiny"),
        ({"init": "runs/none"}, BadRun, "neither a run folder"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line_and_nothing_is_written(base, tmp_path, changes, error, line):
    with pytest.raises(error, match=line) as caught:
        go(tmp_path / "run", **{"part": "prior", "init": str(base), **changes})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_field_that_keeps_shapes_must_be_asked_for(base, tmp_path):
    here = zoo.load(str(base)).config.prior
    other = tmp_path / "other"
    go(other, set=(f"prior.heads={here.heads // 2}", "prior.cond_drop=0.25"))
    with pytest.raises(ConfigError, match=r"add --set prior.heads=\d+ --set prior.cond_drop=0.25$"):
        go(tmp_path / "run", part="prior", init=str(other))
    asked = (f"prior.heads={here.heads // 2}", "prior.cond_drop=0.1")
    go(tmp_path / "run", part="prior", init=str(other), set=asked)
    assert zoo.load(str(tmp_path / "run")).config.prior.cond_drop == 0.1


def test_a_run_without_those_weights_is_refused(base, tmp_path):
    go(tmp_path / "codes", part="codebook")
    with pytest.raises(BadRun, match="has no weights for prior; it has codebook"):
        go(tmp_path / "run", part="prior", init=str(tmp_path / "codes"))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes((base / "codebook.safetensors").read_bytes()[:-9])
    with pytest.raises(BadWeights, match="truncated"):
        go(tmp_path / "run", model="dvae-tiny", init=str(broken))
    with pytest.raises(ConfigError, match="is the run that would be written"):
        go(base, part="prior", init=str(base))


def test_on_the_command_line_a_mismatch_is_code_2(base, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "dalle-tiny", "--part", "prior", "--init", str(base), "--set", "prior.depth=1"]
    assert main([*arguments, "--data", "shapes:n=48"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "prior.depth is 1 here and" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", ["resblock", "bf16"])
def test_every_precision_starts_from_there(base, tmp_path, precision):
    go(tmp_path / "run", part="prior", init=str(base), precision=precision, save_every=4)
    assert "weights:prior.head.weight" in first_state(tmp_path / "run")

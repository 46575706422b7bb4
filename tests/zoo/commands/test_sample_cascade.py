"""`zoo sample` of a cascade: its settings, its stages, and pictures it begins from."""

import weakref

import pytest
import torch
from PIL import Image

import zoo
from zoo.cli import main
from zoo.errors import PartMismatch
from zoo.train.options import main as train


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A cascade of two stages, trained for a moment."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs") / "cascade"
    arguments = ["--model", "imagen-tiny", "--out", str(out), "--steps", "2", "--sample-every", "2"]
    assert train([*arguments, "--data", "shapes:64"]) == 0
    return out


def fails(capsys, *arguments):
    """Run a command that must end with code 2 and one line; return the line."""
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def test_each_stage_of_training_leaves_weights_and_pictures(run):
    assert {p.name for p in run.glob("*.safetensors")} == {
        "tokenizer.safetensors", "text_encoder.safetensors", "base.safetensors", "sr32.safetensors",
    }  # fmt: skip
    for stage in ("base", "sr32"):
        assert list((run / "samples").glob(f"{stage}-*.png"))
    g = zoo.load(str(run))
    assert all(g.ready.values())


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "heun"])
def test_every_sampler_draws(run, tmp_path, sampler, capsys):
    out = tmp_path / "grid.png"
    how = ["--sampling", f"sampler={sampler}", "--sampling", "steps=4", "--guidance", "2"]
    assert main(["sample", str(run), "a red circle", "-n", "2", "--out", str(out), *how]) == 0
    assert "2 pictures" in capsys.readouterr().out
    assert Image.open(out).size[0] > 64


def test_stages_stand_side_by_side(run, tmp_path, capsys):
    assert main(["sample", str(run), "a red circle", "--stages", "--out", str(tmp_path / "grid.png")]) == 0
    assert "stages base, sr32" in capsys.readouterr().out


def test_it_begins_from_a_picture(run, tmp_path):
    mine, mask, low = tmp_path / "mine.png", tmp_path / "mask.png", tmp_path / "low.png"
    Image.new("RGB", (50, 40), "red").save(mine)
    Image.new("RGB", (50, 40), "white").save(mask)
    Image.new("RGB", (16, 16), "red").save(low)
    out = str(tmp_path / "grid.png")
    assert main(["sample", str(run), "a red circle", "--from", str(mine), "--strength", "0.5", "--out", out]) == 0
    assert main(["sample", str(run), "a red circle", "--enlarge", str(low), "--out", out]) == 0
    assert main(["sample", str(run), "a red circle", "--from", str(mine), "--mask", str(mask), "--out", out]) == 0
    red = Image.open(out).convert("RGB").getcolors(1 << 20)
    assert any(color == (255, 0, 0) and count > 32 * 32 for count, color in red)


def test_what_is_wrong_is_said(run, tmp_path, capsys):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "odd.png")
    for arguments, said in (
        (["--temperature", "1"], "--temperature: 'imagen-tiny' draws otherwise; it has --guidance, --sampling"),
        (["--sampling", "step=3"], "did you mean 'steps'"),
        (["--sampling", "sr64.steps=3"], "sr64.steps: no such field; did you mean 'sr32'"),
        (["--sampling", "steps"], "field=value"),
        (["--sampling", "sampler=dpm++", "--sampling", "steps=2"], "needs 3 or more"),
        (["--enlarge", tmp_path / "odd.png"], "no stage enlarges a picture of 20 px; give one of 16 px (sr32)"),
        (["--enlarge", tmp_path / "none.png"], "there is no picture"),
        (["--mask", tmp_path / "odd.png"], "give it with --from"),
        (["--enlarge", tmp_path / "odd.png", "--strength", "0.5"], "give it with --from"),
        (["--stages", "--rerank", "9"], "leave --rerank out"),
        (["--complete", tmp_path / "odd.png", "--stages"], "of denoisers"),
    ):
        assert said in fails(capsys, "sample", run, "a red circle", "--out", tmp_path / "grid.png", *arguments)
    assert not (tmp_path / "grid.png").exists()


def test_one_stage_at_a_time_draws_the_same(run):
    one_stage = run.parent / "dalle"
    assert train(["--model", "dalle-tiny", "--out", str(one_stage), "--steps", "1", "--part", "codebook"]) == 0
    whole, sparse = zoo.load(str(run)), zoo.load(str(run), one_at_a_time=True)
    assert next(sparse.parts["base"].parameters()).is_meta
    torch.testing.assert_close(sparse.generate(["a red circle"], seed=3), whole.generate(["a red circle"], seed=3))
    assert next(sparse.parts["base"].parameters()).is_meta
    bring, there = sparse.bring, weakref.WeakSet()

    def watched(role):
        assert not there, "two stages are held at once"
        part = bring(role)
        there.add(part)
        return part

    sparse.bring = watched
    sparse.generate(["a red circle"], images_per_prompt=3, chunk=2)
    assert sparse.device == whole.device
    with pytest.raises(PartMismatch, match="draws in one stage"):
        zoo.load(str(one_stage), one_at_a_time=True)

"""`zoo import`: public checkpoints into runs that load, sample and export; every bad one is refused in one line."""

import json
import os

import pytest
import torch

import zoo
from zoo import runs
from zoo.cli import main
from zoo.construct import construct
from zoo.errors import NotReady
from zoo.fetching import sha256
from zoo.layouts import part_of, write
from zoo.resolution import resolve_tree
from zoo.weights import load_tensors, read_metadata, save_tensors

NEUTRAL = ("logit_gain=1", "mean=0", "std=1")
"""What makes the smallest dVAE one that the authors' code could be."""
IN_SYSTEM = tuple(f"codebook.{field}" for field in NEUTRAL)


def sets(overrides):
    return [word for field in overrides for word in ("--set", field)]


def public(name, layout, overrides=(), role=None, seed=1):
    """Return random weights of a card: (ours, in the public layout)."""
    node, config = resolve_tree(name, overrides)
    built = construct(node, config, device="cpu", seed=seed)
    part = part_of(node, config, built, role)
    own = {key: x.detach().clone() for key, x in part.module.state_dict().items()}
    return own, write(part, layout, own)


def two_files(folder, state, suffix="pt"):
    """Write a codebook as its authors do."""
    folder.mkdir()
    for side in ("encoder", "decoder"):
        mine = {key.removeprefix(f"{side}."): x for key, x in state.items() if key.startswith(f"{side}.")}
        torch.save(mine, folder / f"{side}.{suffix}")
    return folder


def equal(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[key], x) for key, x in expected.items())


def run(capsys, *arguments):
    """Run a command that succeeds; return what it printed."""
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def fails(capsys, *arguments, code=2):
    """Run a command that ends with one line; return the line."""
    assert main([str(a) for a in arguments]) == code
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture
def dvae(tmp_path):
    """Return (our weights, a folder with the authors' two files)."""
    own, theirs = public("dvae-tiny", "openai", NEUTRAL)
    return own, two_files(tmp_path / "theirs", theirs)


@pytest.fixture
def clip(tmp_path):
    """Return (our weights, a file in OpenAI's layout)."""
    own, theirs = public("clip-tiny", "openai")
    torch.save(theirs, tmp_path / "clip.pt")
    return own, tmp_path / "clip.pt"


def test_a_codebook_of_two_files_loads_encodes_and_leaves_as_it_came(dvae, tmp_path, capsys):
    own, folder = dvae
    (folder / "LICENSE").write_text("modified MIT")
    (folder / "notes").mkdir()
    out = tmp_path / "runs" / "x"
    said = run(capsys, "import", "dvae-tiny", folder, "--out", out, *sets(NEUTRAL), "--json")
    facts = json.loads(said)
    expected = {"card": "dvae-tiny", "part": "codebook", "layout": "openai", "tensors": 66, "params": 12586}
    assert {key: facts[key] for key in expected} == expected
    assert (facts["dtype"], facts["converted"], facts["not_ready"]) == ("float32", {}, [])
    assert facts["ignored"] == ["LICENSE", "notes/"]
    files = [folder / "encoder.pt", folder / "decoder.pt"]
    assert facts["files"] == [{"name": f.name, "sha256": sha256(f), "bytes": f.stat().st_size} for f in files]

    model = zoo.load(str(out))
    assert equal(model.state_dict(), own)
    codes = model.encode(torch.rand(2, 3, 16, 16))
    assert model.decode(codes, ((4, 4),)).shape == (2, 3, 16, 16)
    within = zoo.build("dalle-tiny", overrides=[f"codebook={out}"])
    assert equal(within.codebook.state_dict(), own)
    assert within.ready["codebook"]

    back = tmp_path / "back.safetensors"
    assert "66 tensors" in run(capsys, "export", out, "--layout", "openai", "--out", back)
    _, theirs = public("dvae-tiny", "openai", NEUTRAL)
    assert equal(load_tensors(back)[0], theirs)
    assert load_tensors(back)[1] == {"format": "pt"}  # transformers reads no file without it
    run(capsys, "import", "dvae-tiny", back, "--out", tmp_path / "again", *sets(NEUTRAL))
    assert equal(zoo.load(str(tmp_path / "again")).state_dict(), own)


def test_the_run_records_where_its_weights_are_from_and_nothing_of_the_machine(dvae, tmp_path, capsys):
    out = tmp_path / "x"
    said = run(capsys, "import", "dvae-tiny", dvae[1], "--out", out, *sets(NEUTRAL))
    imported = read_metadata(out / "codebook.safetensors")["imported"]
    assert (imported["from"], imported["layout"]) == ("theirs", "openai")
    assert [file["name"] for file in imported["files"]] == ["encoder.pt", "decoder.pt"]
    assert imported["files"][0]["sha256"] == sha256(dvae[1] / "encoder.pt")
    assert sorted(file.name for file in out.iterdir()) == ["codebook.safetensors", "run.toml"]
    assert all(str(tmp_path).encode() not in file.read_bytes() for file in out.iterdir())
    for word in ("openai", "66 from 66", "12,586", imported["files"][0]["sha256"], "Apache-2.0", "codebook (dvae"):
        assert word in said


@pytest.mark.parametrize("layout", ["huggingface", "openai"])
def test_clip_loads_without_its_vocabulary_and_says_so(layout, tmp_path, capsys):
    own, theirs = public("clip-tiny", layout)
    theirs |= {"openai": {"attn_mask": torch.zeros(2, 2)}, "huggingface": {}}[layout]
    save_tensors(tmp_path / "x.safetensors", {key: x.half() for key, x in theirs.items()})
    out = tmp_path / "x"
    facts = json.loads(run(capsys, "import", "clip-tiny", tmp_path / "x.safetensors", "--out", out, "--json"))
    assert (facts["layout"], facts["not_ready"]) == (layout, ["reranker.tokenizer"])
    assert facts["converted"] == {"float16 -> float32": len(own)}
    assert facts["dropped"] == (["attn_mask"] if layout == "openai" else [])
    assert "public CLIP tokenizer" in facts["left_out"]
    said = run(capsys, "import", "clip-tiny", tmp_path / "x.safetensors", "--out", tmp_path / "y")
    for word in ("tensors converted, float16 -> float32", "not ready  reranker.tokenizer", "caption_mask"):
        assert word in said

    model = zoo.load(str(out))
    assert equal(model.state_dict(), {key: x.half().float() for key, x in own.items()})
    ids, mask = torch.randint(3, 300, (2, 32)), torch.ones(2, 32, dtype=torch.bool)
    assert model.text_features(ids, mask).shape == model.image_features(torch.rand(2, 3, 32, 32)).shape
    with pytest.raises(NotReady):
        model.score(torch.rand(1, 3, 32, 32), ["a cat"])


def test_a_whole_system_of_imported_parts_samples(dvae, clip, tmp_path, capsys):
    out = tmp_path / "x"
    command = ["import", "dalle-tiny", "--out", out, "--part"]
    said = run(capsys, *command, "codebook", dvae[1], *sets(IN_SYSTEM))
    assert "not ready  tokenizer, prior, reranker.tokenizer, reranker" in said
    run(capsys, *command, "reranker", clip[1])  # the run keeps its settings: no --set again
    # Parts without a public layout come in our own names, as `zoo export` writes them.
    prior, _ = public(str(out), "zoo", role="prior")
    save_tensors(tmp_path / "prior.safetensors", prior)
    run(capsys, *command, "prior", tmp_path / "prior.safetensors")
    tokenizer = zoo.build("bpe-tiny")
    tokenizer.fit(zoo.registry.open_dataset("shapes:64", size=32), seed=0)
    save_tensors(tmp_path / "bpe.safetensors", tokenizer.state_dict())
    run(capsys, *command, "tokenizer", tmp_path / "bpe.safetensors")
    said = run(capsys, *command, "reranker.tokenizer", tmp_path / "bpe.safetensors")
    assert "not ready" not in said

    system = zoo.load(str(out))
    assert all(system.ready.values())
    assert equal(system.codebook.state_dict(), dvae[0])
    assert equal(system.reranker.state_dict(), clip[0])
    grid = tmp_path / "grid.png"
    run(capsys, "sample", out, "a red circle", "-n", "2", "--rerank", "3", "--out", grid)
    assert grid.stat().st_size > 0
    line = fails(capsys, "export", out, "--layout", "openai", "--out", tmp_path / "o")
    assert "say which with --part" in line
    assert "has codebook, reranker in layout openai" in line
    line = fails(capsys, "export", out, "--layout", "openay", "--out", tmp_path / "o")
    assert "layout 'openay' is unknown" in line
    assert "openai" in line
    run(capsys, "export", out, "--part", "reranker", "--layout", "openai", "--out", tmp_path / "o.safetensors")
    assert equal(load_tensors(tmp_path / "o.safetensors")[0], torch.load(clip[1]))
    line = fails(capsys, "export", out, "--part", "prior", "--layout", "openay", "--out", tmp_path / "o")
    assert "layout 'openay' is unknown" in line


class Evil:
    def __reduce__(self):
        return os.system, ("touch nothing",)


def test_every_bad_file_is_one_line_and_leaves_nothing(dvae, clip, tmp_path, capsys):
    _, theirs = public("clip-tiny", "openai")
    place = tmp_path / "bad"
    place.mkdir()

    def saved(name, content):
        torch.save(content, place / name)
        return place / name

    cut = place / "cut.pt"
    cut.write_bytes(clip[1].read_bytes()[:-3000])
    (place / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (place / "empty").mkdir()
    (place / "half").mkdir()
    torch.save(theirs, place / "half" / "encoder.pkl")
    (place / "nothing.pt").touch()
    wrong = theirs | {"visual.proj": torch.zeros(32, 25)}
    whole_numbers = theirs | {"visual.proj": torch.zeros(32, 24, dtype=torch.int64)}
    command = ["import", "clip-tiny", "--out", tmp_path / "x"]
    for path, line in {
        cut: "cut.pt: truncated",
        place / "nothing.pt": "nothing.pt: is empty",
        place / "half": "holds encoder.pkl and no file 'decoder'",
        place / "cut.safetensors": "cut.safetensors: truncated, or not a safetensors file",
        place / "empty": "which weight file is meant? found none",
        place / "none.pt": "no such weight file",
        saved("evil.pt", {"w": torch.ones(2), "x": Evil()}): f"it would call {os.system.__module__}.system",
        saved("leftover.pt", theirs | {"extra.weight": torch.ones(1)}): "no place in this CLIP (extra.weight)",
        saved("missing.pt", {k: x for k, x in theirs.items() if k != "visual.proj"}): "no tensor 'visual.proj'",
        saved("wrong.pt", wrong): "'visual.proj' has shape [32, 25], the model's is [32, 24]",
        saved("int.pt", whole_numbers): "'vision.project.weight' is of type int64, the model's is float32",
        saved("foreign.pt", {"conv.weight": torch.ones(1)}): "the file has keys like 'conv.weight'",
        saved("sparse.pt", theirs | {"visual.proj": theirs["visual.proj"].to_sparse()}): "'visual.proj' is sparse",
        dvae[1]: "does not fit 'clip-tiny' in any layout (huggingface, openai, zoo)",
    }.items():
        before = sorted(tmp_path.iterdir())
        assert line in fails(capsys, *command, path), path
        assert sorted(tmp_path.iterdir()) == before


def test_a_fitted_part_looks_at_what_it_is_given(tmp_path, capsys):
    for content, line in [(torch.zeros(0), "was not fitted"), (torch.zeros(5), "not a sentencepiece model")]:
        save_tensors(tmp_path / "x.safetensors", {"proto": content.to(torch.uint8)})
        command = ["import", "bpe-tiny", tmp_path / "x.safetensors", "--out", tmp_path / "x"]
        assert line in fails(capsys, *command)
        assert not (tmp_path / "x").exists()


def test_every_mistake_is_one_line_and_leaves_nothing(clip, tmp_path, capsys):
    _, larger = public("clip", "openai")
    torch.save(larger, tmp_path / "larger.pt")
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    out = ["--out", tmp_path / "x"]
    for arguments, line in [
        (["clip-tiney", clip[1], *out], "did you mean 'clip-tiny'"),
        (["clip-tiny", clip[1], *out, "--layout", "opnai"], "did you mean 'openai'"),
        (["clip-tiny", clip[1], *out, "--layout", "huggingface"], "in layout huggingface: no tensor"),
        (["clip-tiny", clip[1], *out, "--part", "codebook"], "no such part: part 'codebook'"),
        (["clip-tiny", clip[1], *out, "--set", "depth=2"], "depth: no such field"),
        (["dalle-tiny", clip[1], *out], "is a whole system: say which part with --part"),
        (["clip-tiny", clip[1], "--out", tmp_path / "file"], "exists and is not a run folder"),
        (["clip-tiny", clip[1], "--out", tmp_path / "full"], "exists and is not a run folder"),
        (["clip-tiny", tmp_path / "larger.pt", *out], "these are weights of 'clip': zoo import clip "),
        (["dalle-tiny", tmp_path / "larger.pt", *out, "--part", "reranker"], "add --set reranker=clip"),
        (["clip-tiny", clip[1]], "Missing option '--out'"),
    ]:
        before = sorted(tmp_path.iterdir())
        assert line in fails(capsys, "import", *arguments), arguments
        assert sorted(tmp_path.iterdir()) == before


def test_a_run_is_only_added_to(dvae, clip, tmp_path, capsys):
    out = tmp_path / "x"
    command = ["import", "dalle-tiny", "--out", out, "--part"]
    run(capsys, *command, "codebook", dvae[1], *sets(IN_SYSTEM))
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    again = fails(capsys, *command, "codebook", dvae[1])
    assert f"{out / 'codebook.safetensors'} has the weights of 'codebook' already" in again
    line = fails(capsys, *command, "reranker", clip[1], "--set", "codebook.logit_gain=2")
    assert "'codebook' is trained with other settings" in line
    assert "was begun with model 'dalle-tiny'" in fails(capsys, "import", "clip-tiny", clip[1], "--out", out)
    (out / "checkpoints" / "reranker" / "step-00000002").mkdir(parents=True)
    assert "'reranker' is being trained there" in fails(capsys, *command, "reranker", clip[1])
    (out / "checkpoints" / "reranker" / "step-00000002").rmdir()
    assert {file.name: file.read_bytes() for file in out.iterdir() if file.is_file()} == before
    run(capsys, "import", out, "--out", out, "--part", "reranker", clip[1])  # a run may stand for its card
    (out / "codebook.safetensors").unlink()
    save_tensors(out / "prior.safetensors", {}, {"trained_on": {"codebook": "0" * 64}})
    assert "was trained on another 'codebook'" in fails(capsys, *command, "codebook", dvae[1])


@pytest.mark.parametrize("begun", [False, True])
def test_a_full_disk_leaves_the_run_as_it_was(begun, dvae, clip, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x"
    command = ["import", "dalle-tiny", "--out", out, "--part"]
    if begun:
        run(capsys, *command, "codebook", dvae[1], *sets(IN_SYSTEM))
    before = {file.name: file.read_bytes() for file in out.iterdir()} if begun else None

    def full(*arguments, **more):
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(runs, "stream_tensors", full)
    other = ["--set", "prior.depth=2", "--set", f"reranker={tmp_path / 'y'}"] if begun else []
    if begun:  # a part that is copied in on the way goes again too
        monkeypatch.undo()
        run(capsys, "import", "clip-tiny", clip[1], "--out", tmp_path / "y")
        monkeypatch.setattr(runs, "stream_tensors", full)
    prior, _ = public("dalle-tiny", "zoo", [*IN_SYSTEM, "prior.depth=2"] if begun else (), role="prior")
    save_tensors(tmp_path / "prior.safetensors", prior)
    line = fails(capsys, *command, "prior", tmp_path / "prior.safetensors", *other, code=1)
    assert "No space left" in line
    assert ({file.name: file.read_bytes() for file in out.iterdir()} if out.exists() else None) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_failed_import_leaves_what_others_wrote_meanwhile(dvae, clip, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x"
    run(capsys, "import", "dalle-tiny", "--out", out, "--part", "reranker", clip[1], *sets(IN_SYSTEM))

    def full(*arguments, **more):
        (out / "prior.safetensors").write_bytes(b"another's")
        raise OSError(28, "No space left on device", str(out))

    monkeypatch.setattr(runs, "stream_tensors", full)
    fails(capsys, "import", "dalle-tiny", "--out", out, "--part", "codebook", dvae[1], code=1)
    assert (out / "prior.safetensors").read_bytes() == b"another's"
    assert not (out / "codebook.safetensors").exists()


def test_the_folder_one_is_in_may_become_the_run(clip, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    run(capsys, "import", "clip-tiny", clip[1], "--out", ".")
    assert (tmp_path / "here" / "run.toml").is_file()


def test_a_run_that_has_the_part_is_no_place_to_import_another_from(clip, tmp_path, capsys):
    run(capsys, "import", "clip-tiny", clip[1], "--out", tmp_path / "x")
    line = fails(capsys, "import", tmp_path / "x", clip[1], "--out", tmp_path / "y")
    assert "has weights for 'reranker' already; give the name of its card, clip-tiny" in line


def test_info_lists_the_layouts(capsys):
    assert json.loads(run(capsys, "info", "clip-tiny", "--json"))["layouts"] == {"reranker": ["huggingface", "openai"]}
    assert "layouts     huggingface, openai (reranker)" in run(capsys, "info", "clip-tiny")
    assert "layouts" not in run(capsys, "info", "bpe-tiny")


def test_a_checkpoint_is_exported_in_a_public_layout(tmp_path, capsys):
    from zoo.train.options import main as train

    out = tmp_path / "x"
    short = ["--steps", "1", "--batch", "4", "--data", "shapes:16", "--sample-every", "0"]
    assert train(["--model", "clip-tiny", "--out", str(out), *short, "--save-every", "1"]) == 0
    capsys.readouterr()
    (step,) = (out / "checkpoints" / "reranker").glob("step-*")
    for source, name in ((step, "a"), (out, "b")):
        part = () if source is step else ("--part", "reranker")
        run(capsys, "export", source, *part, "--layout", "openai", "--out", tmp_path / f"{name}.safetensors")
    found = load_tensors(tmp_path / "a.safetensors")[0]
    assert "visual.proj" in found
    assert equal(found, load_tensors(tmp_path / "b.safetensors")[0])

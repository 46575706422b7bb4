"""minDALL-E and ruDALL-E with their tokenizers: from folders like the authors' to a picture of a caption."""

import json
import shutil
from pathlib import Path

import pytest
import tokenizers
import torch

import zoo
from zoo.cli import main
from zoo.construct import construct
from zoo.fetching import sha256
from zoo.layouts import part_of, write
from zoo.resolution import resolve_tree
from zoo.weights import read_metadata, save_tensors

YTTM = Path(__file__).parents[1] / "zoo_text" / "data"
PIECES = 163
SMALL = ["image_size=16", "codebook=vqgan-tiny", "tokenizer.length=32"]
CAPTION = {"mindalle": "A red circle, above", "rudalle": "красный круг"}
BODY = {"mindalle": ["a</w>", "red</w>", "circle</w>", ",</w>", "above</w>"]}


def overrides(name):
    return [*SMALL, f"prior={name}-prior-tiny", f"tokenizer.vocab_size={PIECES}"]


def state_of(name, role, layout, fields):
    """Return random weights of a part, in a public layout or the zoo's own; a prior's are such that captions matter."""
    node, config = resolve_tree(f"{name}-1.3b", fields)
    part = part_of(node, config, construct(node, config, device="cpu", seed=1), role)
    source, state = torch.Generator().manual_seed(0), part.module.state_dict()
    if role == "prior":
        state = {key: x + 0.3 * torch.randn(x.shape, generator=source) for key, x in state.items()}
    if name == "mindalle" and role == "prior":
        state["prefix.pad.weight"] = state["prefix.token.weight"][0].expand_as(state["prefix.pad.weight"]).clone()
    return write(part, layout, state)


def vocabulary(folder):
    """Write a vocabulary as minDALL-E's authors do."""
    folder.mkdir()
    maker = tokenizers.CharBPETokenizer(unk_token="[UNK]", lowercase=True)
    words = ["a red circle, above", "a blue square. below"]
    letters = sorted({x for word in words for x in word if x != " "})
    marks = ["[PAD]", "[UNK]", *letters, *(x + "</w>" for x in letters)]
    maker.train_from_iterator(words * 3, vocab_size=PIECES, special_tokens=marks, min_frequency=1, show_progress=False)
    maker.save_model(str(folder), "bpe-16k")
    table = json.loads((folder / "bpe-16k-vocab.json").read_text())
    table |= {f"unused{i}": len(table) + i for i in range(PIECES - len(table))}
    (folder / "bpe-16k-vocab.json").write_text(json.dumps(table))
    return table


@pytest.fixture(params=["mindalle", "rudalle"])
def name(request):
    return request.param


@pytest.fixture
def theirs(name, tmp_path):
    """Return (a folder as the authors', its prior's file, the caption's ids without padding)."""
    folder = tmp_path / "1.3B"
    folder.mkdir()
    prior = folder / "stage2_last.ckpt"
    torch.save({"state_dict": state_of(name, "prior", name, overrides(name))}, prior)
    save_tensors(folder / "stage1.safetensors", state_of(name, "codebook", "zoo", overrides(name)))
    if name == "mindalle":
        table = vocabulary(folder / "tokenizer")
        return folder, prior, [table[piece] for piece in BODY[name]]
    shutil.copy(YTTM / "bpe.model", folder)
    rows = json.loads((YTTM / "youtokentome.json").read_text(encoding="utf-8"))
    return folder, prior, [2, *next(ids for text, ids, _ in rows if text == CAPTION[name]), 3]


def run(capsys, *arguments):
    """Run a command that succeeds; return what it printed."""
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def fails(capsys, *arguments):
    """Run a command that ends with one line and exit code 2; return the line."""
    assert main([str(a) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def command(name, out):
    return ["import", f"{name}-1.3b", "--out", out, "--part"]


def sets(name):
    return [word for field in overrides(name) for word in ("--set", field)]


def test_a_folder_of_theirs_becomes_a_run_that_reads_captions(name, theirs, tmp_path, capsys):
    folder, prior, expected = theirs
    out = tmp_path / "run"
    said = run(capsys, *command(name, out), "prior", prior, *sets(name))
    files = [folder / "bpe.model"] if name == "rudalle" else sorted((folder / "tokenizer").iterdir(), reverse=True)
    assert f"beside     tokenizer (bpe-{name}), layout" in said
    for file in files:
        assert f"{file.name}  {file.stat().st_size:,} bytes  sha256 {sha256(file)}" in said
    assert "note" not in said
    imported = read_metadata(out / "tokenizer.safetensors")["imported"]
    assert imported["files"] == [{"name": x.name, "sha256": sha256(x), "bytes": x.stat().st_size} for x in files]
    assert "not ready" not in run(capsys, *command(name, out), "codebook", folder / "stage1.safetensors")
    shutil.rmtree(folder)  # the run is whole in itself

    system = zoo.load(str(out))
    assert all(system.ready.values())
    ids, mask = system.tokenizer.encode([CAPTION[name]])
    assert ids[0].tolist() == expected + [0] * (32 - len(expected))
    assert mask.sum() == len(expected)
    one, other = (system.generate([text], seed=1) for text in (CAPTION[name], "b"))
    assert one.shape == (1, 3, 16, 16)
    assert not torch.equal(one, other)
    run(capsys, "sample", out, CAPTION[name], "-n", "2", "--out", tmp_path / "grid.png")
    assert (tmp_path / "grid.png").stat().st_size > 0


def test_the_authors_call_conditions_the_prior_alike(theirs, tmp_path, capsys):
    """The prior sees of a caption what it sees of the authors' padded ids."""
    from zoo.interfaces import Cond

    folder, prior, expected = theirs
    name = "rudalle" if (folder / "bpe.model").exists() else "mindalle"
    run(capsys, *command(name, tmp_path / "run"), "prior", prior, *sets(name))
    system = zoo.load(str(tmp_path / "run"))
    ids, mask = system.tokenizer.encode([CAPTION[name]])
    padded = torch.tensor([expected + [0] * (32 - len(expected))])
    codes = torch.zeros(1, 0, dtype=torch.int64)
    with torch.no_grad():
        ours = system.prior.states(codes, Cond(ids=ids, mask=mask))
        for theirs_mask in [padded != 0, *([torch.ones_like(padded) == 1] if name == "mindalle" else [])]:
            assert torch.equal(ours, system.prior.states(codes, Cond(ids=padded, mask=theirs_mask)))


def test_what_is_missing_is_named_and_can_be_added(name, theirs, tmp_path, capsys):
    folder, prior, _ = theirs
    away = tmp_path / "away"
    away.mkdir()
    for file in (folder / "tokenizer").iterdir() if name == "mindalle" else [folder / "bpe.model"]:
        shutil.move(file, away)
    out = tmp_path / "run"
    said = run(capsys, *command(name, out), "prior", prior, *sets(name))
    wanted = {"mindalle": "mindalle's is vocab.json with merges.txt", "rudalle": "rudalle's is bpe.model"}[name]
    (line,) = [line for line in said.splitlines() if line.startswith("lacking")]
    assert wanted in line
    assert f"zoo import {out} FILE --part tokenizer --out {out}" in line
    said = run(capsys, "import", out, away, "--part", "tokenizer", "--out", out)
    assert "not ready  codebook" in said
    assert "tokenizer" not in said.split("not ready")[1]
    assert zoo.load(str(out)).ready["tokenizer"]


def test_another_vocabulary_is_refused_and_nothing_is_written(name, theirs, tmp_path, capsys):
    prior = theirs[1]
    wrong = [*overrides(name)[:-1], f"tokenizer.vocab_size={PIECES + 1}"]
    torch.save(state_of(name, "prior", name, wrong), prior)
    words = [word for field in wrong for word in ("--set", field)]
    line = fails(capsys, *command(name, tmp_path / "run"), "prior", prior, *words)
    assert f"the vocabulary has {PIECES} pieces, and the part that reads it {PIECES + 1}" in line
    assert not (tmp_path / "run").exists()
    line = fails(capsys, *command(name, tmp_path / "run"), "tokenizer", prior.parent, *words)
    assert f"the vocabulary has {PIECES} pieces" in line
    line = fails(capsys, *command(name, tmp_path / "run"), "tokenizer", prior, *sets(name))
    assert "no vocabulary" in line


def test_a_tokenizer_of_ones_own_is_warned_of(name, theirs, tmp_path, capsys):
    own = ["image_size=16", "codebook=vqgan-tiny", f"prior={name}-prior-tiny", "tokenizer=bpe-tiny"]
    torch.save(state_of(name, "prior", name, own), theirs[1])
    words = [word for field in own for word in ("--set", field)]
    said = run(capsys, *command(name, tmp_path / "run"), "prior", theirs[1], *words)
    assert f"tokenizer=bpe-{name} reads them" in said
    assert "beside" not in said

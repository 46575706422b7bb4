"""An imported CLIP with its published vocabulary scores captions as transformers' does."""

import gzip
import json

import pytest
import tokenizers
import torch

import zoo
from zoo.cli import main
from zoo.errors import NotReady
from zoo.weights import read_metadata, read_public, save_tensors
from zoo_text.configs import BYTES, PublicBpe
from zoo_text.pieces import Pieces
from zoo_text.published import PublicTokenizer

CAPTIONS = ["A photo of a cat.", "two red circles", "ein Käse"]
MERGES = [("c", "a"), ("ca", "t</w>"), ("r", "e"), ("re", "d</w>"), ("o", "f</w>")]
SIZE = BYTES + len(MERGES)
SETS = [f"tokenizer.vocab_size={SIZE}", "tokenizer.length=32", f"text_vocab={SIZE}", "tokenizer=bpe-clip"]
LIST = ("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES)).encode()


def run(capsys, *arguments):
    """Run a command that succeeds; return what it printed."""
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def importing(path, out, *more):
    return ["import", "clip-tiny", path, "--out", out, *(word for x in SETS for word in ("--set", x)), *more]


@pytest.fixture
def theirs(tmp_path):
    """Return (transformers' CLIP, its tokenizer, their folder)."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path / "hf"
    folder.mkdir()
    (folder / "merges.txt").write_bytes(LIST)
    letters = list(__import__("transformers.convert_slow_tokenizer", fromlist=["x"]).bytes_to_unicode().values())
    joined = [a + b for a, b in MERGES]
    names = [*letters, *(x + "</w>" for x in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 128, "num_attention_heads": 2}
    ids = {"bos_token_id": SIZE - 2, "eos_token_id": SIZE - 1, "pad_token_id": SIZE - 1}
    config = transformers.CLIPConfig(
        text_config=sizes | ids | {"vocab_size": SIZE, "max_position_embeddings": 32},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    model.save_pretrained(folder)
    return model, transformers.CLIPTokenizer.from_pretrained(folder), folder


@torch.no_grad()
def test_scores_equal_transformers(theirs, tmp_path, capsys):
    model, tokenizer, folder = theirs
    facts = json.loads(run(capsys, *importing(folder, tmp_path / "clip", "--json")))
    (beside,) = facts["beside"]
    assert (beside["part"], beside["card"], beside["layout"]) == ("reranker.tokenizer", "bpe-clip", "huggingface")
    assert (facts["ignored"], facts["lacking"], facts["not_ready"], facts["left_out"]) == (["config.json"], {}, [], "")
    files = read_metadata(tmp_path / "clip" / "reranker.tokenizer.safetensors")["imported"]["files"]
    assert [x["name"] for x in files] == ["vocab.json", "merges.txt"]

    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    ours = zoo.load(str(tmp_path / "clip"))
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (ours.config.mean, ours.config.std))
    batch = tokenizer(CAPTIONS, padding="max_length", max_length=32, return_tensors="pt")
    expected = model(pixel_values=(images - mean) / std, **batch).logits_per_image.diag() / model.logit_scale.exp()
    assert torch.allclose(ours.score(images, CAPTIONS), expected, atol=1e-5)

    back = tmp_path / "back.safetensors"  # of two parts one has this layout
    assert "reranker; " in run(capsys, "export", tmp_path / "clip", "--layout", "huggingface", "--out", back)
    theirs_again = read_public(back)
    assert all(torch.equal(x, theirs_again[name]) for name, x in model.state_dict().items())

    system = zoo.build("dalle-tiny", overrides=[f"reranker={tmp_path / 'clip'}"])
    assert system.ready["reranker"]
    assert system.ready["reranker.tokenizer"]
    assert torch.allclose(system.reranker.score(images, CAPTIONS), expected, atol=1e-5)


def test_openais_list_beside_the_weights_is_read(tmp_path, capsys):
    clip = zoo.build("clip-tiny", overrides=SETS)
    (tmp_path / "openai").mkdir()
    weights = tmp_path / "openai" / "ViT-T-8.safetensors"
    save_tensors(weights, clip.state_dict())
    (tmp_path / "openai" / "bpe_simple_vocab_16e6.txt.gz").write_bytes(gzip.compress(LIST))
    said = run(capsys, *importing(weights, tmp_path / "clip"))
    assert "beside     reranker.tokenizer (bpe-clip), layout openai" in said
    assert "source     bpe_simple_vocab_16e6.txt.gz" in said
    ids, mask = zoo.load(str(tmp_path / "clip")).tokenizer.encode(["a cat"])
    assert ids[0, mask[0]].tolist() == [SIZE - 2, 64 + 256, BYTES - 2 + 1, SIZE - 1]  # "a" is OpenAI's letter 64


def test_a_vocabulary_comes_after_the_weights_or_alone(tmp_path, capsys):
    save_tensors(tmp_path / "x.safetensors", zoo.build("clip-tiny", overrides=SETS).state_dict())
    out = tmp_path / "clip"
    said = run(capsys, *importing(tmp_path / "x.safetensors", out))
    assert "clip's is vocab.json with merges.txt, or tokenizer.json, or bpe_simple_vocab_16e6.txt" in said
    with pytest.raises(NotReady, match=r"reranker\.tokenizer for a reranker's"):
        zoo.load(str(out)).score(torch.rand(1, 3, 32, 32), ["a cat"])
    (tmp_path / "own.txt").write_bytes(LIST)
    add = ["import", out, "--part", "reranker.tokenizer", "--out", out]
    assert main([str(x) for x in (*add, tmp_path / "own.txt")]) == 2
    assert "own.txt: no vocabulary; clip's is" in capsys.readouterr().err
    (tmp_path / "own.txt").rename(tmp_path / "bpe_simple_vocab.txt")
    assert "not ready" not in run(capsys, *add, tmp_path / "bpe_simple_vocab.txt")
    assert zoo.load(str(out)).score(torch.rand(1, 3, 32, 32), ["a cat"]).shape == (1,)

    alone = ["import", "bpe-clip", tmp_path / "bpe_simple_vocab.txt", "--out", tmp_path / "bpe"]
    run(capsys, *alone, "--set", f"vocab_size={SIZE}")
    assert zoo.load(str(tmp_path / "bpe")).ready
    run(capsys, "export", tmp_path / "bpe", "--out", tmp_path / "back.safetensors")
    command = ["import", "bpe-clip", tmp_path / "back.safetensors", "--out", tmp_path / "again"]
    run(capsys, *command, "--set", f"vocab_size={SIZE}")
    assert zoo.load(str(tmp_path / "again")).encode(["cat"])[0].shape == (1, 77)


def test_a_vocabulary_of_another_size_is_one_line_and_leaves_nothing(tmp_path, capsys):
    save_tensors(tmp_path / "x.safetensors", zoo.build("clip-tiny", overrides=SETS).state_dict())
    (tmp_path / "tokenizer.json").write_text(tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    assert main([str(x) for x in importing(tmp_path / "x.safetensors", tmp_path / "clip")]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "the vocabulary's 0 pieces" in line
    assert not (tmp_path / "clip").exists()


def test_what_a_run_keeps_is_readable():
    tokenizer = PublicTokenizer(PublicBpe(vocab_size=BYTES + 30))
    tokenizer.fit(type("Corpus", (), {"uri": "x", "texts": lambda self: iter(["the cat in the hat"] * 3)})(), seed=0)
    content = bytes(tokenizer.vocabulary.numpy())
    assert Pieces.load(content).dump() == content

"""Embeddings of captions on disk: equal to encoding, made once, refused where another encoder made them."""

import re
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch
from short_runs import go, interrupted, saved
from torch import nn
from train_fakes import FakeData

from zoo.cli import main
from zoo.errors import BadData, BadRun, BadWeights, ConfigError
from zoo.interfaces import Batch
from zoo.rng import Rng
from zoo.train import embedded
from zoo.train.captions import Distinct, find, keys_of
from zoo.train.embedded import Embedded, encoding, maker_of, open_embeddings
from zoo.train.embeddings import Embeddings, build
from zoo.train.metrics import read_rows
from zoo.train.store import open_store
from zoo.weights import load_tensors

LENGTH, WIDTH, WORDS = 8, 6, 97
PRINTS = {"tokenizer": "abc", "text_encoder": "def"}


@attrs.frozen(kw_only=True)
class Settings:
    depth: int = 1
    train: str = ""


class Tokenizer:
    """A caption's words, by their sums of code points; noisy ones leave out the first in training."""

    card, length, vocab_size, noisy = "fake-words", LENGTH, WORDS, False

    def encode(self, texts, rng=None):
        ids, mask = torch.zeros(len(texts), LENGTH, dtype=torch.int64), torch.zeros(len(texts), LENGTH).bool()
        skip = rng.integers(2).tolist() if self.noisy and rng is not None else [0] * len(texts)
        for i, text in enumerate(texts):
            words = text.split()[skip[i] : LENGTH]
            ids[i, : len(words)] = torch.tensor([sum(map(ord, word)) % WORDS for word in words], dtype=torch.int64)
            mask[i, : len(words)] = True
        return ids, mask


class Encoder(nn.Module):
    card, width = "fake-t5", WIDTH

    def __init__(self, seed=0):
        super().__init__()
        self.config, self.calls = Settings(), 0
        table = torch.randn(WORDS, WIDTH, generator=torch.Generator().manual_seed(seed))
        self.table = nn.Parameter(table)

    def encode(self, ids, mask):
        self.calls += 1
        x = self.table[ids]
        return (x + x.mean(1, keepdim=True)) * mask[..., None]


class System:
    def __init__(self, trains=False):
        self.parts = {"tokenizer": Tokenizer(), "text_encoder": Encoder(), "base": nn.Linear(1, 1)}
        self.stages = {"base": ("text_encoder", "base") if trains else ("base",), "codebook": ("codebook",)}

    def reads(self, part):
        frozen = ("tokenizer", "text_encoder") if part == "base" else ()
        return tuple(role for role in frozen if role not in self.stages[part])

    def encode(self, part, batch, *, rng=None):
        filled = batch.filled() | {"z": batch.images[:, :1, ::4, ::4]}
        if batch.text is None:
            ids, mask = self.parts["tokenizer"].encode(batch.texts, rng)
            filled |= {"text": self.parts["text_encoder"].encode(ids, mask), "text_mask": mask}
        return Batch(**filled)


def captions(n, words=40):
    """Return n captions, the same every time, of which many are equal."""
    source = np.random.default_rng(0)
    return [" ".join(f"w{w}" for w in source.integers(words, size=source.integers(0, 11))) for _ in range(n)]


class Captioned(FakeData):
    """Pictures with captions of a few words."""

    def __init__(self, length=50, size=8):
        super().__init__(length, size)
        self.said = captions(length)

    def read(self, rows, rng=None):
        return attrs.evolve(super().read(rows, rng), texts=tuple(self.said[i] for i in rows))

    def texts(self):
        return iter(self.said)


def made(folder, texts, system=None, **more):
    system = system or System()
    return build(folder, lambda: iter(texts), encoding(system, "cpu"), maker_of(system, PRINTS), **more)


def opened(folder, system=None, data=None, prints=PRINTS, samples=10**6, **more):
    system, data = system or System(), data or Captioned()
    return open_embeddings(folder, system, "base", data, prints, samples=samples, device="cpu", **more)


def test_embeddings_are_the_encoders_in_bfloat16(tmp_path):
    texts, system = captions(3000), System()
    store = made(tmp_path / "e", texts, system, chunk=7)
    wanted = [texts[i] for i in (2999, 0, 5, 5, 17)] + [""]
    text, mask = store.read(wanted)
    ids, seen = system.parts["tokenizer"].encode(wanted)
    assert torch.equal(mask, seen)
    assert torch.equal(text, system.parts["text_encoder"].encode(ids, seen).bfloat16().float())
    assert (text.dtype, text.shape) == (torch.float32, (6, LENGTH, WIDTH))
    assert not text[5].any()
    every, _ = store.read(texts)
    ids, seen = system.parts["tokenizer"].encode(texts)
    assert torch.equal(every, system.parts["text_encoder"].encode(ids, seen).bfloat16().float())


def test_each_caption_is_kept_once_without_padding(tmp_path):
    texts = captions(400, words=2)
    store, lengths = made(tmp_path / "e", texts), [min(len(text.split()), LENGTH) for text in set(texts)]
    assert len(store) == len(set(texts)) < 400
    values = load_tensors(tmp_path / "e" / "values.safetensors")[0]["values"]  # the library reads it too
    assert (values.shape, values.dtype) == ((sum(lengths), WIDTH), torch.bfloat16)
    assert len(store.values) == len(values)


def test_half_surrogates_and_empty_captions_are_captions(tmp_path):
    texts = ["a \ud800", "a \ud801", "", "ä"]
    store = made(tmp_path / "e", texts)
    assert len(store) == 4
    assert store.read(texts)[1].sum(1).tolist() == [2, 2, 0, 1]
    assert len(made(tmp_path / "none", [""]).values) == 0


def test_captions_that_share_half_a_hash_are_told_apart():
    keys = np.array([[1, 5, 5, 5, 9], [0, 2, 3, 7, 1]])
    wanted = np.array([[5, 5, 9, 5, 5, 0, 10, 1], [7, 2, 1, 3, 4, 0, 0, 0]])
    assert find(keys, wanted).tolist() == [3, 1, 4, 2, -1, -1, -1, 0]
    assert find(keys[:, :4], np.array([[5], [9]])).tolist() == [-1]


def test_different_captions_come_by_their_first_place():
    found = Distinct.of(["b", "a", "b", "c", "a"])
    assert sorted(found.first.tolist()) == [0, 1, 3]
    assert find(found.keys, keys_of(["c", "x"])).tolist() == [found.first.tolist().index(3), -1]
    assert found.digest == Distinct.of(["c", "b", "a"]).digest != Distinct.of(["a", "b"]).digest
    assert len(Distinct.of([])) == 0


def test_a_caption_that_is_not_there_is_named(tmp_path):
    store = made(tmp_path / "e", ["a", "b"])
    with pytest.raises(BadData, match="lacks the caption 'never seen'"):
        store.read(["b", "never seen"])
    with pytest.raises(BadData, match="no captions"):
        made(tmp_path / "none", [])


def test_what_fails_half_way_leaves_nothing(tmp_path):
    system = System()
    encode = encoding(system, "cpu")

    def fails(texts):
        if system.parts["text_encoder"].calls > 3:
            raise OSError(28, "No space left on device")
        return encode(texts)

    with pytest.raises(OSError, match="No space"):
        build(tmp_path / "e", lambda: iter(captions(500)), fails, maker_of(system, PRINTS), chunk=20)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["values", "index"])
def test_files_that_are_cut_short_or_missing_are_refused(tmp_path, name):
    made(tmp_path / "e", captions(50))
    file = tmp_path / "e" / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(BadWeights, match="truncated"):
        Embeddings.open(tmp_path / "e")
    file.unlink()
    with pytest.raises(BadData, match="has no embeddings"):
        Embeddings.open(tmp_path / "e")


def other_weights(system, prints):
    return prints | {"text_encoder": "xyz"}


def other_settings(system, prints):
    system.parts["text_encoder"].config = Settings(depth=2)
    return prints


def other_card(system, prints):
    system.parts["tokenizer"].card = "fake-pieces"
    return prints | {"tokenizer": "xyz"}


def other_length(system, prints):
    system.parts["tokenizer"].length = 9
    return prints


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_weights, "made by another text_encoder than this one ('fake-t5' with other weights"),
        (other_settings, "made by another text_encoder than this one ('fake-t5' with other weights or settings)"),
        (other_card, "made by another tokenizer than this one ('fake-words' and not 'fake-pieces')"),
        (other_length, "holds 8 tokens of width 6 a caption, here are 9 of width 6"),
    ],
)
def test_another_encoders_are_refused_in_one_line(tmp_path, change, said):
    data, system = Captioned(), System()
    made(tmp_path / "e", data.said)
    prints = change(system, PRINTS)
    with pytest.raises(BadData, match=re.escape(said)) as error:
        opened(tmp_path / "store", system, data, prints, given=tmp_path / "e")
    assert "\n" not in str(error.value)
    assert "zoo embed RUN --data fake" in str(error.value)


def test_how_the_encoder_was_trained_does_not_matter(tmp_path):
    data, system = Captioned(), System()
    made(tmp_path / "e", data.said)
    system.parts["text_encoder"].config = Settings(train="otherwise")
    assert len(opened(tmp_path / "store", system, data, given=tmp_path / "e")) == len(set(data.said))
    assert not (tmp_path / "store").exists()


def test_other_captions_are_found_before_training(tmp_path):
    made(tmp_path / "e", captions(20))
    with pytest.raises(BadData, match="lacks the caption"):
        opened(tmp_path / "store", given=tmp_path / "e")


def test_a_tokenizer_that_is_noisy_in_training_is_refused(tmp_path):
    data, system = Captioned(), System()
    made(tmp_path / "e", data.said)
    system.parts["tokenizer"].noisy = True
    with pytest.raises(
        ConfigError, match=r"\('fake-words'\) reads a caption differently each time.*leave --emb"
    ) as error:
        opened(tmp_path / "store", system, data, given=tmp_path / "e")
    assert "\n" not in str(error.value)


def test_it_is_made_once_and_shared_by_stages_of_other_sizes(tmp_path):
    first = opened(tmp_path)
    system = System()
    again = opened(tmp_path, system, Captioned(size=16))
    assert system.parts["text_encoder"].calls == 0
    assert first.folder == again.folder
    assert len(list(tmp_path.iterdir())) == 1
    opened(tmp_path, prints=PRINTS | {"text_encoder": "other"})
    opened(tmp_path, data=Captioned(60))
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("case", ["trained", "noisy", "few samples", "large", "many rows", "no captions"])
def test_where_a_store_makes_no_sense_there_is_none(tmp_path, case, monkeypatch):
    system, data, samples = System(trains=case == "trained"), Captioned(), 10**6
    system.parts["tokenizer"].noisy = case == "noisy"
    if case == "few samples":
        samples = len(set(data.said)) - 1
    if case == "large":
        monkeypatch.setattr(embedded, "_LARGEST", 1000)
    if case == "many rows":
        monkeypatch.setattr(embedded, "_MOST_ROWS", 49)
    if case == "no captions":
        data.said = []
    assert opened(tmp_path, system, data, samples=samples) is None
    assert not list(tmp_path.iterdir())


def test_batches_come_with_embeddings_and_encode_has_nothing_to_do(tmp_path):
    system, data = System(), Captioned()
    expected = system.encode("base", data.read([3, 4, 4]))
    store = opened(tmp_path / "text", system, data)
    with_text = Embedded(data, store)
    codes = open_store(tmp_path, system, "base", with_text, PRINTS, samples=10**6, device="cpu")
    calls = system.parts["text_encoder"].calls
    for source in (with_text, Embedded(codes, store)):
        batch = source.read([3, 4, 4], Rng(0, range(3)))
        filled = batch if batch.images is None else system.encode("base", batch)
        assert torch.equal(filled.text, expected.text.bfloat16().float())
        assert torch.equal(filled.text_mask, expected.text_mask)
        assert torch.equal(filled.z, expected.z)
        assert len(source) == 50
    assert system.parts["text_encoder"].calls == calls
    assert (with_text.fingerprint, with_text.uri, with_text.stochastic) == (data.fingerprint, "fake", False)
    wordless = SimpleNamespace(read=lambda rows, rng=None: attrs.evolve(data.read(rows), texts=None))
    assert Embedded(wordless, store).read([1]).text is None


def test_long_captions_are_told_of_once(tmp_path, recwarn):
    class Warns(Tokenizer):
        def encode(self, texts, rng=None):
            import warnings

            warnings.warn(f"{texts[0]} is cut", UserWarning, stacklevel=2)
            return super().encode(texts, rng)

    system = System()
    system.parts["tokenizer"] = Warns()
    made(tmp_path / "e", captions(300), system, chunk=10)
    assert len(recwarn) == 1


SMALL = {"model": "imagen-tiny", "steps": 12}


def losses(folder):
    return [row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["part"] == "sr32"]


def test_a_stage_that_reads_a_frozen_encoder_reads_a_store(cascade, tmp_path, monkeypatch):
    assert len(list((cascade / "store").glob("text-*"))) == 1
    parts = [f"{role}={cascade}" for role in ("tokenizer", "text_encoder")]
    more = {**SMALL, "set": (*parts, "train_text=false"), "part": "sr32"}
    go(tmp_path / "stored", **more)
    monkeypatch.setattr("zoo.train.one.open_embeddings", lambda *_, **__: None)
    go(tmp_path / "encoded", **more)
    one, two = losses(tmp_path / "stored"), losses(tmp_path / "encoded")
    assert one != two  # bfloat16
    assert one == pytest.approx(two, rel=1e-2)


def test_embeddings_made_beforehand_are_read(cascade, tmp_path, capsys):
    out = tmp_path / "e"
    assert main(["embed", str(cascade), "--data", "shapes:n=48", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert re.match(r"\d+ captions, \d+ tokens of width 24: ", said)
    parts = [f"{role}={cascade}" for role in ("tokenizer", "text_encoder")]
    more = {**SMALL, "set": (*parts, "train_text=false"), "part": "sr32"}
    go(tmp_path / "run", **more, embeddings=out)
    assert not list((tmp_path / "run").glob("store/text-*"))
    go(tmp_path / "own", **more)
    assert all(torch.equal(x, saved(tmp_path / "own", "sr32")[k]) for k, x in saved(tmp_path / "run", "sr32").items())

    with pytest.raises(ConfigError, match="'base' trains the text_encoder first, and its embeddings will be others"):
        go(tmp_path / "other", **SMALL, seed=1, embeddings=out)
    with pytest.raises(ConfigError, match="none of base reads a frozen text_encoder"):
        go(tmp_path / "other", **SMALL, part="base", embeddings=out)
    assert not (tmp_path / "other").exists()
    go(tmp_path / "other", model="imagen-tiny", steps=1, part="base", seed=1)
    with pytest.raises(BadData, match="was made by another text_encoder"):
        go(tmp_path / "other", **SMALL, part="sr32", seed=1, embeddings=out)

    few = {**more, "steps": 4}  # fewer samples than there are captions: without the folder they are encoded each time
    interrupted(tmp_path / "few", 2, **few, embeddings=out)
    with pytest.raises(
        BadRun, match=r"was made with embeddings='t5-tiny [0-9a-f]{16}', not None; resume with the same"
    ):
        go(tmp_path / "few", **few, resume=True)
    go(tmp_path / "few", **few, resume=True, embeddings=out)


def embed_fails(capsys, *arguments):
    assert main(["embed", *map(str, arguments), "--data", "shapes:n=48"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_what_cannot_be_embedded_is_one_line(cascade, tmp_path, capsys, monkeypatch):
    assert "is no system with a text_encoder" in embed_fails(capsys, "t5-tiny", "--out", tmp_path / "e")
    assert "'tokenizer' of 'imagen-tiny' has no weights" in embed_fails(capsys, "imagen-tiny", "--out", tmp_path / "e")
    half = ("imagen-tiny", "--set", f"tokenizer={cascade}", "--out", tmp_path / "e")
    assert "'text_encoder' of 'imagen-tiny' has no weights" in embed_fails(capsys, *half)
    assert "has something in it" in embed_fails(capsys, cascade, "--out", cascade)
    assert "--device foo: " in embed_fails(capsys, cascade, "--device", "foo", "--out", tmp_path / "e")
    assert "holds no values" in embed_fails(capsys, cascade, "--device", "meta", "--out", tmp_path / "e")
    monkeypatch.setattr("zoo.construct.free_memory", lambda device: 10)
    said = embed_fails(capsys, cascade, "--out", tmp_path / "e")
    needed = re.search(r"needs ([\d,]+) bytes of parameters and \S+ has 10 free", said)
    assert 0 < int(needed[1].replace(",", "")) < sum(x.nbytes for x in saved(cascade, "base").values())
    assert not (tmp_path / "e").exists()

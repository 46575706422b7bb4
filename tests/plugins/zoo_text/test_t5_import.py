"""T5's published folders: weights, description and vocabulary, by the commands; and the way back."""

import io
import json
import random

import pytest
import torch
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

import zoo
from zoo.cli import main
from zoo.rng import Rng
from zoo.testing.kit import one_thread
from zoo.weights import load_tensors, read_metadata, save_tensors
from zoo_text.configs import SENTINELS

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
SIZES = {"width": 32, "depth": 2, "heads": 4, "head_width": 6, "hidden": 40}
VOCAB, ROWS, LENGTH = 300, 384, 16
CAPTIONS = [
    "a red circle above a blue square", "A Photo of the CAT's  dog!!", "two green triangles, beside one yellow cross",
    "a very small cat in a big yellow box", "naïve café “quoted” – dash", "123 4,567 a1b2 ½ ² ™ ﬁ", "",
    "a " * 40, "日本語 テスト", "tab\tnew\nline", "the Quick Brown fox jumps over the lazy dog",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def run(capsys, *arguments):
    """Run a command that succeeds; return what it printed."""
    assert main([str(a) for a in arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def fails(capsys, *arguments):
    """Run a command that ends with one line; return the line."""
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def importing(path, out, *more, activation="gated-gelu"):
    sets = {**SIZES, "text_vocab": VOCAB, "text_length": LENGTH, "round_to": 128, "activation": activation}
    words = (word for name, x in sets.items() for word in ("--set", f"{name}={x}"))
    return ["import", "t5-tiny", path, "--out", out, *words, *more]


def stirred(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return model.eval()


def sizes(activation="gated-gelu", **more):
    return transformers.T5Config(
        vocab_size=ROWS, d_model=32, d_kv=6, d_ff=40, num_layers=2, num_heads=4, feed_forward_proj=activation,
        decoder_start_token_id=0, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def spiece(tmp_path_factory):
    """Return a folder with a small model in the form of T5's: 200 pieces at most."""
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS * 20), model_writer=written, model_type="unigram", vocab_size=VOCAB - SENTINELS,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, num_threads=1, minloglevel=2,
        character_coverage=0.99,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("spiece")
    (folder / "spiece.model").write_bytes(written.getvalue())
    return folder


@pytest.mark.parametrize("activation", ["gated-gelu", "relu"])
def test_an_encoders_folder_is_read_and_written_back(tmp_path, capsys, activation):
    model = stirred(transformers.T5EncoderModel(sizes(activation)))
    model.save_pretrained(tmp_path / "hf")
    out = tmp_path / "run"
    facts = json.loads(run(capsys, *importing(tmp_path / "hf", out, "--json", activation=activation)))
    assert (facts["layout"], facts["dropped"], facts["not_ready"]) == ("transformers", [], [])
    assert [x["name"] for x in facts["files"]] == ["model.safetensors", "config.json"]
    ids = torch.randint(1, VOCAB, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(LENGTH) < torch.tensor([[4], [16], [9]])
    encoder = zoo.load(str(out))
    found = encoder.encode(ids, mask)
    expected = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state * mask[..., None]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()

    run(capsys, "export", out, "--layout", "transformers", "--out", tmp_path / "back")
    again, said = transformers.T5EncoderModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(said.values())
    for name, x in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], x), name


def test_a_whole_t5_loses_its_decoder_which_is_said(tmp_path, capsys):
    model = stirred(transformers.T5ForConditionalGeneration(sizes(num_decoder_layers=1, tie_word_embeddings=False)))
    model.save_pretrained(tmp_path / "hf")
    text = run(capsys, *importing(tmp_path / "hf", tmp_path / "run"))
    assert "no weights of this model: decoder.block.0" in " ".join(text.split())
    state = dict(model.state_dict())  # with the table under all its names, as .bin files have it
    assert {"shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"} <= state.keys()
    torch.save(state, tmp_path / "pytorch_model.bin")
    run(capsys, *importing(tmp_path / "pytorch_model.bin", tmp_path / "other"))
    one, two = (load_tensors(tmp_path / name / "text_encoder.safetensors")[0] for name in ("run", "other"))
    assert all(torch.equal(one[name], x) for name, x in two.items())
    assert torch.equal(one["tokens.weight"], state["shared.weight"])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj = gated-silu, and this model has gated-gelu"),
        ({"relative_attention_max_distance": 64}, "--set max_distance=64"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon = 1e-05"),
    ],
)
def test_a_description_of_another_computation_is_refused(tmp_path, capsys, changed, said):
    stirred(transformers.T5EncoderModel(sizes())).save_pretrained(tmp_path / "hf")
    capsys.readouterr()
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert said in fails(capsys, *importing(tmp_path / "hf", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_weights_of_another_kind_are_refused(tmp_path, capsys):
    state = {k: x.contiguous() for k, x in stirred(transformers.T5EncoderModel(sizes("relu"))).state_dict().items()}
    save_tensors(tmp_path / "a.safetensors", state)
    assert "DenseReluDense.wi_0.weight" in fails(capsys, *importing(tmp_path / "a.safetensors", tmp_path / "run"))
    save_tensors(tmp_path / "b.safetensors", {k: x for k, x in state.items() if "embed" not in k and "shared" not in k})
    line = fails(capsys, *importing(tmp_path / "b.safetensors", tmp_path / "run", activation="relu"))
    assert "lack 'shared.weight'" in line
    save_tensors(tmp_path / "c.safetensors", {**state, "encoder.block.1.extra": state["shared.weight"]})
    line = fails(capsys, *importing(tmp_path / "c.safetensors", tmp_path / "run", activation="relu"))
    assert "unexpected 'encoder.block.1.extra'" in line


@pytest.fixture
def tokenizer(spiece, tmp_path, capsys):
    size = SentencePieceProcessor(model_file=str(spiece / "spiece.model")).get_piece_size() + SENTINELS
    sets = ["--set", f"vocab_size={size}", "--set", f"length={LENGTH}"]
    run(capsys, "import", "sentencepiece-t5", spiece, "--out", tmp_path / "pieces", *sets)
    return zoo.load(str(tmp_path / "pieces"))


def fields_of(message):
    """Yield (number, value) of a protobuf message: what it takes to read one without the library."""

    def number(at):
        value = shift = 0
        while True:
            byte = message[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128:
                return value, at

    at = 0
    while at < len(message):
        key, at = number(at)
        if key & 7 == 0:
            value, at = number(at)
        else:
            size, at = {1: (8, at), 5: (4, at)}.get(key & 7) or number(at)
            value, at = message[at : at + size], at + size
        yield key >> 3, value


def transformers_tokenizer(path):
    """Return transformers' tokenizer of a sentencepiece file, made as its own `from_pretrained` makes it.

    (That needs the package protobuf.)
    """
    content = path.read_bytes()
    model = SentencePieceProcessor(model_proto=content)
    vocab = [(model.id_to_piece(i), model.get_score(i)) for i in range(model.get_piece_size())]
    (normaliser,) = (x for number, x in fields_of(content) if number == 3)
    charsmap = dict(fields_of(normaliser))[2]
    return transformers.T5Tokenizer(vocab=vocab, _spm_precompiled_charsmap=charsmap)


@pytest.mark.filterwarnings("ignore:caption")
def test_captions_are_read_as_transformers_reads_them(spiece, tokenizer):
    theirs = transformers_tokenizer(spiece / "spiece.model")
    source = random.Random(0)
    texts = CAPTIONS + ["".join(source.choices("thinaredcpofo 🦄é'1.<| ", k=source.randint(0, 40))) for _ in range(150)]
    ids, mask = tokenizer.encode(texts)
    batch = theirs(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt")
    assert torch.equal(ids, batch.input_ids)
    assert torch.equal(mask, batch.attention_mask.bool())
    assert len(theirs) == tokenizer.vocab_size
    for text, back in zip(texts, tokenizer.decode(ids), strict=True):
        expected = theirs.decode(theirs(text, truncation=True, max_length=LENGTH).input_ids, skip_special_tokens=True)
        assert back.strip() == expected.strip(), text


def test_long_captions_are_cut_before_their_end_mark(tokenizer):
    with pytest.warns(UserWarning, match=r"truncated to 15 of \d+ tokens"):
        ids, mask = tokenizer.encode(["a " * 40])
    assert mask.all()
    assert ids[0, -1] == 1
    with pytest.warns(UserWarning, match="truncated"):
        tokenizer.encode(["a " * 40], Rng(0, [0]))
    tokenizer.encode(["a " * 40], Rng(0, [0]))  # in training it is said once


def test_the_file_is_kept_as_it_is(spiece, tokenizer, tmp_path):
    assert bytes(tokenizer.vocabulary.numpy()) == (spiece / "spiece.model").read_bytes()
    files = read_metadata(tmp_path / "pieces" / "tokenizer.safetensors")["imported"]["files"]
    assert [x["name"] for x in files] == ["spiece.model"]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"nonsense" * 9, "not a sentencepiece model"), (None, "pieces, and the part that reads it 32,100")],
)
def test_another_vocabulary_is_refused(spiece, tmp_path, capsys, content, said):
    (tmp_path / "spiece.model").write_bytes(content or (spiece / "spiece.model").read_bytes())
    line = fails(capsys, "import", "sentencepiece-t5", tmp_path / "spiece.model", "--out", tmp_path / "run")
    assert said in line


def test_a_model_with_other_marks_is_refused(tmp_path, capsys):
    written = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS), model_writer=written, vocab_size=200, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "spiece.model").write_bytes(written.getvalue())
    line = fails(capsys, "import", "sentencepiece-t5", tmp_path, "--out", tmp_path / "run")
    assert "other ids than 0, 1 and 2" in line

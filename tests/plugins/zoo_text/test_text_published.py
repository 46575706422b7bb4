"""CLIP's and minDALL-E's tokenizers against transformers' and tokenizers' own, on small vocabularies made here."""

import gzip
import itertools
import json
import random

import pytest
import tokenizers
import torch

from zoo.errors import BadData, BadWeights, NotInstalled, NotReady
from zoo.rng import Rng
from zoo_text import interop, readers
from zoo_text.configs import BYTES, PublicBpe, bpe_clip, bpe_mindalle, bpe_rudalle
from zoo_text.published import PublicTokenizer

STRANGE = [
    "", " ", "a red circle", "A Photo of the CAT's  dog!!", "naïve café “quoted” – dash", "e\u0301 NFD",
    "🦄 and \U0001f469\u200d\U0001f469\u200d\U0001f467, 🇰🇷 ❤️", "I'll they're we've don't I'M HE'D the rock'n'roll",
    "日本語 テスト", "123 4,567.89 a1b2 ½ ²", "the <|endoftext|> the", "<|startoftext|>", "the " * 90, "a" * 300,
    "<|ENDOFTEXT|> [PAD] [UNK] [pad] </w>", "tab\tnew\nline\u00a0nbsp\u2003em\u2028", "İstanbul ΣΑΣ ß ﬁ ǅ ™ ①",
    "#hash_tag @user http://x.y/z?q=1&amp;", "\x00 control \x07\x7f", "क्षत्रिय สวัสดี", "\ufffe\uffff\ufeff", "\U0010ffff",
    "in the in the", "thethe inther",
]  # fmt: skip
WORDS = ["the", "in", "a", "red", "circle", "photo", "of", "cat", "there", "inner"]


def made(seed, letters="thinaredcpofo 🦄é'1.<|", rows=150):
    """Return random texts."""
    source = random.Random(seed)
    return ["".join(source.choices(letters, k=source.randint(0, 40))) for _ in range(rows)]


def merges_of(words, end="</w>"):
    """Return merges that build each word from its left, the first one from letters alone."""
    merges = []
    for word in words:
        pieces = [*word[:-1], word[-1] + end]
        for i in range(1, len(pieces)):
            pair = ("".join(pieces[:i]), pieces[i])
            if pair not in merges:
                merges.append(pair)
    return merges


def loaded(config, layout, **files):
    """Return a tokenizer with the vocabulary of these files: name (with _ for .) -> content."""
    tokenizer = PublicTokenizer(config)
    state = {name.replace("__", "."): torch.tensor(list(x), dtype=torch.uint8) for name, x in files.items()}
    tokenizer.load_state_dict(getattr(interop, f"from_{layout}")(state, config))
    return tokenizer


def text_of(merges):
    return ("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in merges) + "\n").encode()


@pytest.fixture(scope="module")
def clip_vocabulary():
    """Return a vocabulary in an order of its own, and its merges."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    merges = merges_of(WORDS)
    names = [*letters, *(a + b for a, b in merges), *(x + "</w>" for x in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return vocab, merges


@pytest.fixture(scope="module")
def clip(clip_vocabulary):
    vocab, merges = clip_vocabulary
    config = PublicBpe(style="clip", vocab_size=len(vocab), length=77)
    return loaded(config, "huggingface", vocab__json=json.dumps(vocab).encode(), merges__txt=text_of(merges))


@pytest.fixture(scope="module")
def char_files(tmp_path_factory):
    """Return a folder with a vocabulary as minDALL-E's."""
    letters = list("abcdefghijklmnopqrstuvwxyz'.,!é1<|>")
    merges = merges_of(WORDS)
    names = ["[PAD]", "[UNK]", *letters, *(x + "</w>" for x in letters), *(a + b for a, b in merges)]
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "bpe-16k-vocab.json").write_text(json.dumps({x: i for i, x in enumerate(dict.fromkeys(names))}))
    (folder / "bpe-16k-merges.txt").write_bytes(text_of(merges))
    return folder


@pytest.fixture(scope="module")
def char(char_files):
    vocab, merges = (char_files / f"bpe-16k-{name}" for name in ("vocab.json", "merges.txt"))
    config = PublicBpe(style="mindalle", vocab_size=len(json.loads(vocab.read_text())), length=64)
    return loaded(config, "huggingface", vocab__json=vocab.read_bytes(), merges__txt=merges.read_bytes())


def test_published_sizes():
    sizes = [(x.style, x.vocab_size, x.length) for x in (bpe_clip(), bpe_mindalle(), bpe_rudalle())]
    assert sizes == [("clip", 49408, 77), ("mindalle", 16384, 64), ("rudalle", 16384, 128)]
    with pytest.raises(ValueError, match="vocab_size: 513 is too few for style='clip'"):
        PublicBpe(style="clip", vocab_size=513)


@pytest.mark.filterwarnings("ignore:caption")
def test_clip_equals_transformers(clip, clip_vocabulary, tmp_path):
    transformers = pytest.importorskip("transformers")
    vocab, merges = clip_vocabulary
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_bytes(text_of(merges))
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)
    texts = [*STRANGE, *made(1)]
    ids, mask = clip.encode(texts)
    end = vocab["<|endoftext|>"]
    for text, row, kept in zip(texts, ids, mask, strict=True):
        expected = theirs(text, truncation=True, max_length=77).input_ids
        assert row[kept].tolist() == expected[: expected.index(end) + 1], text  # CLIP is read at its first end mark
        assert not row[~kept].any()
    for text, back in zip(texts, clip.decode(ids), strict=True):
        if "<|" not in text and len(theirs(text).input_ids) <= 77:
            assert back == theirs.decode(theirs(text).input_ids, skip_special_tokens=True), text


@pytest.mark.filterwarnings("ignore:caption")
def test_minidalle_equals_the_authors_construction(char, char_files):
    # github.com/kakaobrain/minDALL-E, dalle/models/tokenizer.py, with the arguments of dalle/models/__init__.py
    theirs = tokenizers.CharBPETokenizer.from_file(
        str(char_files / "bpe-16k-vocab.json"),
        str(char_files / "bpe-16k-merges.txt"),
        unk_token="[UNK]",
        lowercase=True,
    )
    theirs.add_special_tokens(["[PAD]"])
    theirs.enable_padding(length=64, pad_id=theirs.token_to_id("[PAD]"))
    theirs.enable_truncation(max_length=64)
    for text in [*STRANGE, *made(2)]:
        ids, mask = char.encode([text])
        assert ids[0].tolist() == theirs.encode(text).ids, text
        assert mask.sum() == sum(theirs.encode(text).attention_mask)
        assert char.decode(ids)[0] == theirs.decode(ids[0].tolist()), text


@pytest.mark.parametrize("packed", [False, True])
def test_openais_list_gives_clips_order(packed):
    slow = pytest.importorskip("transformers.convert_slow_tokenizer")
    merges = merges_of(WORDS)
    content = b'"bpe_simple_vocab_16e6.txt#version: 0.2\n' + text_of([*merges, ("never", "read")]).split(b"\n", 1)[1]
    config = PublicBpe(style="clip", vocab_size=BYTES + len(merges))
    tokenizer = loaded(config, "openai", bpe_simple_vocab_16e6__txt=gzip.compress(content) if packed else content)
    letters = list(slow.bytes_to_unicode().values())
    marks = ["<|startoftext|>", "<|endoftext|>"]
    expected = [*letters, *(x + "</w>" for x in letters), *(a + b for a, b in merges), *marks]
    assert json.loads(bytes(tokenizer.vocabulary.numpy()))["pieces"] == expected
    ids = tokenizer.encode(["The cat"])[0][0]
    assert [expected[i] for i in ids[:4]] == ["<|startoftext|>", "the</w>", "cat</w>", "<|endoftext|>"]


def test_one_file_of_tokenizers_is_the_same_vocabulary(clip, clip_vocabulary):
    vocab, merges = clip_vocabulary
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE(dict(vocab), merges, end_of_word_suffix="</w>"))
    theirs.add_special_tokens(["<|startoftext|>", "<|endoftext|>"])
    data = json.loads(theirs.to_str())
    older = data | {"model": data["model"] | {"merges": [" ".join(pair) for pair in merges]}}
    for written in (data, older):
        one = loaded(clip.config, "tokenizers", tokenizer__json=json.dumps(written).encode())
        assert torch.equal(one.vocabulary, clip.vocabulary)


def test_long_captions_keep_clips_end_mark(clip):
    with pytest.warns(UserWarning, match=r"truncated to 75 of 90 tokens: '\.\.\. the the") as seen:
        ids, mask = clip.encode(["the " * 90, "the"])
    assert len(seen) == 1
    assert mask.sum(1).tolist() == [77, 3]
    assert ids[0, -1] == ids[1, 2] == clip.vocab_size - 1
    with pytest.warns(UserWarning, match="truncated"):
        clip.encode(["the " * 90], Rng(0, [0]))
    clip.encode(["the " * 90], Rng(0, [0]))  # in training it is said once


def test_round_trips(clip, char):
    plain = [" ".join(words) for words in itertools.islice(itertools.permutations(WORDS, 3), 60)]
    for tokenizer in (clip, char):
        assert tokenizer.decode(tokenizer.encode(plain)[0]) == plain
    for text in (*STRANGE[2:10], *made(3, rows=50)):
        (back,) = clip.decode(clip.encode([text])[0])
        if "<|" not in text and text.strip():
            assert torch.equal(clip.encode([back])[0], clip.encode([text])[0]), text


@pytest.mark.parametrize(
    ("text", "said"), [("", "caption is empty"), ("日日日 a", "letters that the vocabulary lacks")]
)
def test_captions_that_say_nothing_are_named(char, text, said):
    with pytest.warns(UserWarning, match=said):
        char.encode([text])


def test_state_is_whole_and_refused_where_it_does_not_belong(clip, char):
    other = PublicTokenizer(clip.config)
    assert not other.ready
    with pytest.raises(NotReady, match="published one of clip"):
        other.encode(["a"])
    other.load_state_dict(clip.state_dict())
    assert torch.equal(other.encode(STRANGE[2:6])[0], clip.encode(STRANGE[2:6])[0])
    with pytest.raises(BadWeights, match=r"lacks '\[PAD\]': it is another system's"):
        PublicTokenizer(char.config).load_state_dict(clip.state_dict())
    with pytest.raises(BadWeights, match="config allows 520"):
        PublicTokenizer(PublicBpe(vocab_size=520)).load_state_dict(clip.state_dict())
    with pytest.raises(BadWeights, match="not a list of pieces and merges"):
        other.load_state_dict({"vocabulary": torch.arange(9, dtype=torch.uint8)})


def test_bad_files_are_one_line(clip, clip_vocabulary):
    vocab, merges = clip_vocabulary
    vocabulary, lines = json.dumps(vocab).encode(), text_of(merges)
    packed = gzip.compress(lines * 50)
    swapped = {**vocab, "zz": 0}
    files = {
        "vocab": lambda x, y=lines: ("huggingface", {"vocab__json": x, "merges__txt": y}),
        "openai": lambda x: ("openai", {"bpe_simple_vocab_16e6__txt": x}),
        "one": lambda x: ("tokenizers", {"tokenizer__json": x}),
    }
    for (layout, content), said in [
        (files["vocab"](vocabulary[:-9]), "not JSON, or truncated"),
        (files["vocab"](b"[1]"), "not a table from pieces to ids"),
        (files["vocab"](json.dumps(swapped).encode()), "do not have the ids 0, 1, 2"),
        (files["vocab"](json.dumps({"a": 0}).encode()), "which the vocabulary lacks"),
        (files["vocab"](json.dumps({"a": 0}).encode(), b""), "lacks '<|startoftext|>': it is another system's"),
        (files["vocab"](vocabulary, b"#version\nt h e\n"), "'t h e' is no merge of two pieces"),
        (files["vocab"](vocabulary, b"\xff\xfe"), "is truncated, or not text"),
        (files["openai"](packed[:-30]), "is truncated, or not text"),
        (files["openai"](text_of(merges[:9])), "has 9 merges, too few for"),
        (files["one"](b'{"model": {"type": "WordPiece", "vocab": {}}}'), "no byte-pair tokenizer"),
        (files["one"](b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": 3}}'), "the merges are not a list"),
    ]:
        with pytest.raises(BadWeights) as error:
            loaded(clip.config, layout, **content)
        assert said in str(error.value)
        assert "\n" not in str(error.value)
    smaller = PublicBpe(vocab_size=520)
    with pytest.raises(BadWeights, match=f"has {len(vocab):,} pieces, and the part that reads it 520"):
        loaded(smaller, "huggingface", vocab__json=vocabulary, merges__txt=lines)
    padded_elsewhere = json.dumps({"[UNK]": 0, "[PAD]": 1, "a": 2}).encode()
    with pytest.raises(BadWeights, match=r"'\[PAD\]' has id 1, and padding is 0"):
        loaded(PublicBpe(style="mindalle", vocab_size=16), "huggingface", vocab__json=padded_elsewhere, merges__txt=b"")


def test_the_missing_package_is_one_line(clip, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    other = PublicTokenizer(clip.config)
    other.load_state_dict(clip.state_dict())  # needs no package: a run loads and says what is missing when it reads
    with pytest.raises(NotInstalled, match=r"pip install 'image-zoo\[tokenizers\]'"):
        other.encode(["a"])
    with pytest.raises(NotInstalled):
        readers.library()


class Corpus:
    uri = "corpus"

    def __init__(self, captions):
        self.captions = captions

    def texts(self):
        return iter(self.captions)


@pytest.mark.parametrize("style", ["clip", "mindalle", "rudalle"])
def test_a_vocabulary_can_be_fitted(style):
    captions = ["a red circle above a blue square", "the cat in the hat", "красный круг 1 2"] * 5
    config = PublicBpe(style=style, vocab_size=BYTES + 60 if style == "clip" else 160, length=40)
    one, two = PublicTokenizer(config), PublicTokenizer(config)
    for tokenizer in (one, two):
        tokenizer.fit(Corpus(captions), seed=0)
    assert torch.equal(one.vocabulary, two.vocabulary)
    ids, mask = one.encode(captions[:3])
    assert one.decode(ids) == captions[:3]
    assert ids.max() < one._ready().size <= config.vocab_size
    assert mask.sum() < sum(map(len, captions[:3]))
    with pytest.raises(BadData, match="corpus: no captions"):
        one.fit(Corpus(["", "\0"]), seed=0)


def test_files_are_found_beside_and_named(char_files, tmp_path):
    found = interop.find_files("mindalle", char_files)
    assert [x.name for x in found.values()] == ["bpe-16k-vocab.json", "bpe-16k-merges.txt"]
    assert interop.find_files("mindalle", char_files / "bpe-16k-merges.txt") == found
    (tmp_path / "tokenizer").mkdir()
    vocabulary = tmp_path / "tokenizer" / "vocab.json"
    vocabulary.write_text("{}")
    with pytest.raises(BadWeights, match=r"tokenizer: has no merges\.txt"):
        interop.find_files("clip", tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    assert list(interop.find_files("clip", tmp_path)) == ["tokenizer.json"]
    with pytest.raises(BadWeights, match=r"no vocabulary; rudalle's is bpe\.model"):
        interop.find_files("rudalle", tmp_path)
    (tmp_path / "tokenizer" / "old-vocab.json").write_text("{}")
    with pytest.raises(BadWeights, match=r"which file is meant, old-vocab.json or vocab.json\?"):
        interop.find_files("mindalle", tmp_path)

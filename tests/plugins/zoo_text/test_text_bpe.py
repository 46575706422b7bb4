"""The byte-pair tokenizer: fit, encode, dropout, decode, state."""

from __future__ import annotations

import copy
import itertools
import random
import unicodedata
import warnings

import pytest
import torch

from zoo.data.shapes import open_shapes
from zoo.errors import BadData, BadWeights, NotReady
from zoo.rng import Rng
from zoo_text.configs import Bpe, bpe_16384, bpe_49408, bpe_shapes, bpe_tiny
from zoo_text.merges import Merges
from zoo_text.model import END, PAD, BpeTokenizer, normalise

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "cross")
THINGS = [" ".join(pair) for pair in itertools.product(COLOURS, SHAPES)]
PLACES = itertools.product(("top", "middle", "bottom"), ("left", "center", "right"))
CAPTIONS = [f"a {s} {t} at the {y} {x}" for (y, x), t, s in itertools.product(PLACES, THINGS, ("small", "large"))]
CAPTIONS += [f"a {a} {rel} a {b}" for rel in ("above", "left of") for a, b in itertools.product(THINGS, THINGS)]
WORDS = sorted({word for caption in CAPTIONS for word in caption.split()})

STRANGE = [
    "",
    " ",
    "a",
    "빨간 원 위에 파란 사각형",
    unicodedata.normalize("NFD", "빨간 원 é"),
    "🦄 and \U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466, 🇰🇷 ❤️",  # joined and paired code points
    "naïve café \u2013 “quoted”",
    "<pad> <0x41> <end> <unk>",
    "İstanbul ǅ ß ﬁ ™ ①",
    "tab\tnew\nline\u00a0nbsp",
    "▁▁under▁line",
    "x\0y",
    "\ud800 half",
    "a" * 300,
    "\ufffe\uffff\ufeff",
    "\U0001d518\U0001d52b \U0010ffff",
    "123 4,567.89 a1b2",
    "A  RED   circle",
    "क्षत्रिय สวัสดี",
]


class Corpus:
    """A dataset of captions alone."""

    uri = "corpus"

    def __init__(self, captions):
        self.captions = captions

    def texts(self):
        """Yield the captions."""
        return iter(self.captions)


def fitted(config: Bpe, captions=CAPTIONS, seed=0) -> BpeTokenizer:
    """Return a tokenizer fitted on the captions."""
    tokenizer = BpeTokenizer(config)
    tokenizer.fit(Corpus(captions), seed=seed)
    return tokenizer


@pytest.fixture(scope="module")
def shapes() -> BpeTokenizer:
    """The tokenizer of `shapes`."""
    return fitted(bpe_shapes())


@pytest.fixture(scope="module")
def mixed() -> BpeTokenizer:
    """A tokenizer that has seen several scripts, with pieces of many lengths."""
    source = random.Random(1)
    letters = "etaoinshr빨간원위에é🦄123.,-'"
    made = [" ".join("".join(source.choices(letters, k=source.randint(1, 9))) for _ in range(6)) for _ in range(400)]
    return fitted(Bpe(vocab_size=900, length=400), [*made, *CAPTIONS[:100]])


def test_paper_sizes():
    paper = bpe_16384()
    assert (paper.vocab_size, paper.length, paper.lowercase, paper.bpe_dropout) == (16384, 256, True, 0.1)
    facts = bpe_49408().facts(32)
    assert (facts.vocab_size, facts.length, facts.grids) == (49408, 77, None)


@pytest.mark.parametrize("wrong", [{"vocab_size": 100}, {"length": 1}, {"bpe_dropout": 1.5}, {"captions": 0}])
def test_config_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Bpe(**wrong)


def test_every_word_of_shapes_is_one_piece(shapes):
    ids, mask = shapes.encode(CAPTIONS)
    assert ids.shape == (len(CAPTIONS), 20)
    assert ids.dtype == torch.int64
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == [len(caption.split()) for caption in CAPTIONS]
    assert (ids[~mask] == PAD).all()
    assert (ids[mask] > END).all()
    assert ids.max() < shapes.vocab_size
    assert (mask.int().diff(dim=1) <= 0).all()  # tokens first, padding after
    assert len({int(shapes.encode([word])[0][0, 0]) for word in WORDS}) == len(WORDS)
    assert shapes.decode(ids) == CAPTIONS


def test_real_shapes_captions():
    """Fitted on the embedded dataset's training split, no caption of any split is cut or split inside a word."""
    tokenizer = BpeTokenizer(bpe_shapes())
    tokenizer.fit(open_shapes("", split="train", size=32), seed=0)
    for split in ("train", "validation", "heldout"):
        captions = sorted(set(open_shapes("", split=split, size=32).texts()))
        ids, mask = tokenizer.encode(captions)
        assert mask.sum(1).tolist() == [len(caption.split()) for caption in captions]
        assert tokenizer.decode(ids) == captions


def test_every_word_is_one_piece_in_tiny():
    tokenizer = fitted(bpe_tiny(), [f"{a} {b}" for a in COLOURS[:3] for b in SHAPES[:2]])
    assert tokenizer.encode(["red circle"])[1].sum() == 2


def test_fit_is_deterministic(shapes):
    again = fitted(bpe_shapes())
    assert torch.equal(shapes.proto, again.proto)
    small = Bpe(captions=50)
    assert torch.equal(fitted(small, seed=3).proto, fitted(small, seed=3).proto)
    assert not torch.equal(fitted(small, seed=3).proto, fitted(small, seed=4).proto)


def test_case_is_folded_when_asked(shapes):
    assert torch.equal(shapes.encode(["A Red CIRCLE"])[0], shapes.encode(["a red circle"])[0])
    kept = fitted(Bpe(lowercase=False))
    assert kept.decode(kept.encode(["A Red CIRCLE"])[0]) == ["A Red CIRCLE"]


def test_any_unicode_survives(shapes, mixed):
    for tokenizer in (mixed, fitted(Bpe(length=400))):
        ids, _ = tokenizer.encode(STRANGE)
        assert tokenizer.decode(ids) == [normalise(text, True) for text in STRANGE]
    assert normalise(unicodedata.normalize("NFD", "빨간"), True) == "빨간"
    assert normalise("™ ① 🦄", True) == "™ ① 🦄"


def test_more_letters_than_room_are_spelled_in_bytes():
    korean = ["".join(chr(0xAC00 + (7 * i + j) % 3000) for j in range(8)) for i in range(2000)]
    tokenizer = fitted(Bpe(length=64), korean)
    assert tokenizer.decode(tokenizer.encode(korean[:20])[0]) == korean[:20]


@pytest.mark.parametrize("captions", [[], ["", "  ", "\0"]])
def test_no_captions_is_bad_data(captions):
    with pytest.raises(BadData, match="corpus: no captions"):
        fitted(bpe_tiny(), captions)


def test_one_letter_is_enough():
    assert fitted(bpe_tiny(), ["a"]).encode(["a"])[1].sum() == 1


def test_not_ready():
    tokenizer = BpeTokenizer(bpe_tiny())
    assert not tokenizer.ready
    with pytest.raises(NotReady, match="not fitted"):
        tokenizer.encode(["a"])
    with pytest.raises(NotReady):
        tokenizer.decode(torch.zeros(1, 2, dtype=torch.int64))


def test_no_dropout_equals_sentencepiece(mixed, shapes):
    source = random.Random(2)
    alphabet = "etaoinshr빨간원위에é🦄123.,-'zqß \u3000"
    made = ["".join(source.choices(alphabet, k=source.randint(0, 60))) for _ in range(400)]
    for tokenizer in (mixed, shapes):
        processor = tokenizer._ready()
        merges = Merges(processor)
        for text in (normalise(t, True) for t in [*made, *STRANGE, *CAPTIONS[::40]]):
            assert merges.encode(text, 0.0, source) == processor.encode(text), repr(text)


def noisy(tokenizer: BpeTokenizer, p: float) -> BpeTokenizer:
    """Return the tokenizer with this dropout."""
    other = BpeTokenizer(Bpe(vocab_size=tokenizer.vocab_size, length=200, bpe_dropout=p))
    other.load_state_dict(tokenizer.state_dict())
    return other


def test_full_dropout_gives_letters(shapes):
    tokenizer = noisy(shapes, 1.0)
    text = "a red circle"
    ids, mask = tokenizer.encode([text], Rng(0, [0]))
    assert mask.sum() == len(text) + 1  # the first word begins with a space too
    assert tokenizer.decode(ids) == [text]
    assert tokenizer.encode([text])[1].sum() == 3  # no noise without rng


def test_dropout_depends_on_the_row_alone(shapes):
    tokenizer = noisy(shapes, 0.3)
    texts = CAPTIONS[:8]
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    ids, mask = tokenizer.encode(texts, Rng(5, range(8)))
    assert torch.equal(state, torch.random.get_rng_state())
    alone = [tokenizer.encode([text], Rng(5, [i]))[0] for i, text in enumerate(texts)]
    assert torch.equal(ids, torch.cat(alone))
    assert not torch.equal(ids, tokenizer.encode(texts, Rng(6, range(8)))[0])
    assert tokenizer.decode(ids) == texts
    plain = shapes.encode(texts)[1].sum()
    assert plain < mask.sum() < sum(len(t) + 1 for t in texts)


def test_dropout_is_as_frequent_as_asked(shapes):
    """A word of one possible merge is whole with probability 1 - p."""
    tokenizer = noisy(fitted(bpe_tiny(), ["x"] * 9), 0.25)  # the only merge is space + x
    lengths = tokenizer.encode(["x"] * 4000, Rng(0, range(4000)))[1].sum(1)
    assert set(lengths.tolist()) == {1, 2}
    assert abs((lengths == 2).float().mean() - 0.25) < 0.03


def test_long_captions_are_cut_with_one_warning():
    tokenizer = fitted(Bpe(length=4))
    with pytest.warns(UserWarning, match=r"truncated to 4 of 6 tokens: '... purple square' is cut$") as seen:
        ids, mask = tokenizer.encode(["a red circle above purple square", "a red cross"])
    assert len(seen) == 1
    assert mask.sum(1).tolist() == [4, 3]
    assert tokenizer.decode(ids) == ["a red circle above", "a red cross"]
    with pytest.warns(UserWarning, match="and 1 more of 2 captions"):
        tokenizer.encode(["a a a a a", "a a a a a a"])


def test_training_warns_once():
    tokenizer = fitted(Bpe(length=2))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for step in range(3):
            tokenizer.encode(["a red circle"], Rng(0, [0], step=step))
    assert len(seen) == 1


def test_end_piece_survives_the_cut():
    tokenizer = fitted(Bpe(length=4, end=True))
    with pytest.warns(UserWarning, match="3 of 4"):
        ids, mask = tokenizer.encode(["a red circle above", "a red", ""])
    assert mask.sum(1).tolist() == [4, 3, 1]
    assert [int(row[m][-1]) for row, m in zip(ids, mask, strict=True)] == [END] * 3
    assert tokenizer.decode(ids) == ["a red circle", "a red", ""]


def test_decode_passes_over_ids_without_a_piece(shapes):
    ids, _ = shapes.encode(["a red circle"])
    ids[0, -3:] = torch.tensor([PAD, END, shapes.vocab_size - 1])
    assert shapes.decode(ids) == ["a red circle"]
    assert shapes.encode([])[0].shape == (0, 20)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_state_is_one_buffer_of_any_length(shapes, device):
    with torch.device(device):
        other = BpeTokenizer(bpe_shapes())
    assert not other.ready
    assert sum(p.numel() for p in other.parameters()) == 0
    other.load_state_dict(shapes.state_dict())
    assert list(shapes.state_dict()) == ["proto"]
    assert other.proto.dtype == torch.uint8
    assert other.ready
    assert torch.equal(other.encode(CAPTIONS)[0], shapes.encode(CAPTIONS)[0])
    other.load_state_dict(fitted(bpe_shapes(), ["something else"]).state_dict())
    assert other.encode(["a red circle"])[1].sum() > 3  # the old model is not kept in a cache
    other.load_state_dict(BpeTokenizer(bpe_shapes()).state_dict())
    assert not other.ready


def test_state_inside_another_module_and_a_copy(shapes):
    box = torch.nn.ModuleDict({"tokenizer": BpeTokenizer(bpe_shapes())})
    box.load_state_dict({"tokenizer.proto": shapes.state_dict()["proto"]}, assign=True)
    twin = copy.deepcopy(box["tokenizer"]).to(torch.bfloat16)
    assert torch.equal(twin.encode(["a red circle"])[0], shapes.encode(["a red circle"])[0])
    with pytest.raises(RuntimeError, match=r"tokenizer\.proto"):
        box.load_state_dict({})


def test_fit_after_meta_construction():
    with torch.device("meta"):
        tokenizer = BpeTokenizer(bpe_tiny())
    tokenizer.fit(Corpus(["a b"]), seed=0)
    assert tokenizer.encode(["a"])[0].device.type == "cpu"


def test_foreign_bytes_are_refused(shapes):
    tokenizer = BpeTokenizer(bpe_tiny())
    with pytest.raises(BadWeights, match="not a sentencepiece model"):
        tokenizer.load_state_dict({"proto": torch.arange(200, dtype=torch.uint8)})
    big = fitted(Bpe(vocab_size=1024))
    with pytest.raises(BadWeights, match="config allows 384"):
        tokenizer.load_state_dict(big.state_dict())
    assert not tokenizer.ready


@pytest.mark.parametrize(("text", "said"), [
    ("", "caption is empty"), (" \t ", "caption is empty"), ("красный круг", "'красный круг' is spelled in bytes"),
])  # fmt: skip
def test_captions_that_say_nothing_are_named(shapes, text, said):
    with pytest.warns(UserWarning, match=said):
        shapes.encode([text])


def test_known_captions_and_training_are_silent(shapes):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shapes.encode(["a red circle"])
        shapes.encode(["", "круг"], Rng(0, [0, 1]))

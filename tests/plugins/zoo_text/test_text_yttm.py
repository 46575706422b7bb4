"""ruDALL-E's tokenizer against youtokentome itself, through files that it wrote, and by hand.

`data/bpe.model` was trained by youtokentome 1.0.6 (300 lines of Russian and English words, 1 thread), which then
encoded and decoded the texts of `data/youtokentome.json`: [text, ids, text of these ids without marks].
"""

import json
from pathlib import Path

import pytest
import torch

from zoo.errors import BadWeights
from zoo_text import interop
from zoo_text.configs import PublicBpe
from zoo_text.published import PublicTokenizer
from zoo_text.yttm import Yttm, dump

DATA = Path(__file__).parent / "data"
MODEL = (DATA / "bpe.model").read_bytes()
SIZE = 163
ROWS = json.loads((DATA / "youtokentome.json").read_text(encoding="utf-8"))
SPACE, A, B, C = 4, 5, 6, 7
LETTERS = {"\u2581": SPACE, "a": A, "b": B, "c": C}
RULES = [(A, B, 8), (SPACE, A, 9), (B, C, 10), (8, C, 11), (A, A, 12)]  # ab, _a, bc, abc, aa
MARKS = (1, 0, 2, 3)


@pytest.fixture(scope="module")
def tokenizer():
    config = PublicBpe(style="rudalle", vocab_size=SIZE, length=24)
    tokenizer = PublicTokenizer(config)
    state = {"bpe.model": torch.frombuffer(bytearray(MODEL), dtype=torch.uint8)}
    tokenizer.load_state_dict(interop.from_youtokentome(state, config))
    return tokenizer


def test_ids_and_texts_equal_the_original():
    model = Yttm(MODEL)
    assert model.size == SIZE
    assert len(ROWS) > 100
    for text, ids, back in ROWS:
        assert model.encode(text) == ids, text
        assert model.decode(ids) == back, text
        assert model.decode([2, *ids, 3, 0, 0, SIZE]) == back


@pytest.mark.parametrize(("text", "ids"), [
    ("", []),
    (" \t\n", []),
    ("c", [SPACE, C]),
    ("ab", [SPACE, 8]),  # the first rule goes first, though the second begins further left
    ("abc", [SPACE, 11]),
    ("aab", [9, 8]),
    ("aaa", [9, 12]),  # rule 2 before rule 5, which then finds one pair
    ("bbc", [SPACE, B, 10]),
    ("axyb", [9, 1, B]),  # a run of unknown letters is one, and joins nothing
    ("xy", [SPACE, 1]),
    ("c c", [SPACE, C, SPACE, C]),
    ("c\u2581c", [SPACE, C, SPACE, C]),
    ("c\u00a0c", [SPACE, C, 1, C]),  # no space of ASCII
])  # fmt: skip
def test_rules_by_hand(text, ids):
    assert Yttm(dump(LETTERS, RULES, MARKS)).encode(text) == ids


@pytest.mark.filterwarnings("ignore:caption is empty")
def test_captions_are_marked_padded_and_cut_as_rudalle_does(tokenizer):
    body = Yttm(MODEL).encode("красный круг")
    ids, mask = tokenizer.encode(["  Красный КРУГ ", ""])
    assert ids[0].tolist() == [2, *body, 3] + [0] * (22 - len(body))
    assert torch.equal(mask, ids != 0)
    assert ids[1, :3].tolist() == [2, 3, 0]
    with pytest.warns(UserWarning, match="truncated to 23 of"):
        ids, mask = tokenizer.encode(["красный круг " * 30])
    whole = Yttm(MODEL).encode("красный круг " * 30)
    assert ids[0].tolist() == [2, *whole][:24]  # its end mark is cut off with the rest
    assert mask.all()
    assert tokenizer.decode(tokenizer.encode(["красный круг", "кот и собака"])[0]) == ["красный круг", "кот и собака"]
    with pytest.warns(UserWarning, match="letters that the vocabulary lacks"):
        tokenizer.encode(["日"])


def test_the_state_is_the_authors_file(tokenizer):
    assert bytes(tokenizer.state_dict()["vocabulary"].numpy()) == MODEL


@pytest.mark.parametrize(("content", "said"), [
    (b"", "its first line is not two numbers"),
    (MODEL[:700], "is not the 41 letters, 118 rules and marks"),
    (MODEL + b"1 2 3 4\n", "is not the 41 letters, 118 rules and marks"),
    (b"999999999999 7\n", "is not the 999999999999 letters"),
    (b"-1 3\n1 2\n", "is not the -1 letters"),
    (b"\x80\x02}q\x00", "other things than numbers"),
    (b"{}", "other things than numbers"),
    (dump(LETTERS, [(5, 77, 8)], MARKS), "the rule '5 77 8' joins what is not there"),
    (dump(LETTERS, [(5, 6, 7)], MARKS), "the rule '5 6 7' joins what is not there, or makes what is"),
    (dump(LETTERS, [(5, 6, 9)], MARKS), "do not have the ids 0, 1, 2"),
    (dump({"a": 4}, [], MARKS), "to begin a word with"),
    (dump(LETTERS, [], (-1, 0, 1, 2)), "no id for unknown letters"),
])  # fmt: skip
def test_bad_models_are_one_line(content, said):
    with pytest.raises(BadWeights, match=said) as error:
        Yttm(content)
    assert "\n" not in str(error.value)


def test_a_model_without_rudalles_marks_is_refused():
    content = dump({"\u2581": 2, "a": 3}, [], (1, 0, -1, -1))
    tokenizer = PublicTokenizer(PublicBpe(style="rudalle"))
    with pytest.raises(BadWeights, match="no marks for start and end"):
        tokenizer.load_state_dict({"vocabulary": torch.frombuffer(bytearray(content), dtype=torch.uint8)})

"""Obedience by kind of caption: what is counted where, and the tables."""

import pytest

from zoo.data.shapes import open_shapes, parse
from zoo.errors import BadData
from zoo.evaluate.cells import Sweep
from zoo.evaluate.kinds import HEADS, KINDS, by_kind, row, table

SAID = {
    "a small red circle at the top left": True,
    "a small blue circle at the top left": False,
    "a small blue cross at the middle center": True,
    "a large green triangle at the bottom right": False,
    "a red circle above a blue square": True,
    "A blue  square above a red circle": True,
    "a red circle left of a blue cross": False,
}


def test_captions_are_counted_by_kind_and_single_objects_by_shape():
    assert by_kind(SAID, SAID.values()) == {
        "one small": {"all": (2, 3), "circle": (1, 2), "cross": (1, 1)},
        "one large": {"all": (0, 1), "triangle": (0, 1)},
        "above": {"all": (2, 2)},
        "left of": {"all": (0, 1)},
    }


def test_every_caption_of_the_data_is_counted_once():
    captions = list(open_shapes("", split="validation", size=32).texts())[:500]
    good = [i % 3 == 0 for i in range(500)]
    found = by_kind(captions, good)
    assert tuple(found) == KINDS
    assert [sum(kind["all"][i] for kind in found.values()) for i in (0, 1)] == [sum(good), 500]
    for size in ("small", "large"):
        for shape in ("circle", "square", "triangle", "cross"):
            asked = [g for c, g in zip(captions, good, strict=True) if f" {size} " in c and f" {shape} at" in c]
            assert found[f"one {size}"][shape] == (sum(asked), len(asked))
    assert found["above"]["all"][1] == sum(parse(caption).kind == 1 for caption in captions)


def test_a_table_has_a_row_a_kind_and_one_row_has_the_sums():
    kinds = by_kind(SAID, SAID.values())
    assert table(kinds, "best of 8") == [
        "best of 8  all  circle  triangle  cross",
        "one small  2/3  1/2               1/1",
        "one large  0/1          0/1",
        "above      2/2",
        "left of    0/1",
    ]
    assert row(kinds) == {
        "one small": "2/3", "one large": "0/1", "above": "2/2", "left of": "0/1", "circle": "1/2", "triangle": "0/1",
        "cross": "1/1",
    }  # fmt: skip
    assert set(row(kinds)) < set(HEADS)
    assert row(by_kind(["a red circle above a blue square"], [True])) == {"above": "1/1"}


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(BadData, match="not a caption of 'shapes'"):
        by_kind(["a dog"], [True])
    with pytest.raises(ValueError, match="shorter"):
        by_kind(list(SAID)[:2], [True])


def test_a_sweep_knows_the_captions_of_data_that_can_be_judged():
    captions = Sweep(runs={}, data="shapes:64", splits=("validation", "train"), captions=70).texts
    assert {split: len(texts) for split, texts in captions.items()} == {"validation": 70, "train": 64}
    assert captions["train"][5] == open_shapes("64", split="train", size=32).read([5]).texts[0]
    assert Sweep(runs={}, data="emoji").texts == {}

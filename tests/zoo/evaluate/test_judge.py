"""Which pictures can be judged, and by what they were asked for."""

from zoo.evaluate.judge import judge_of
from zoo.registry import open_dataset


def test_labels_ask_for_less_than_captions():
    data = "shapes:objects=1"
    batch = open_dataset(data, split="validation", size=32).read(range(64))
    mirrored = batch.images.flip(-1)  # right colour and shape, often the wrong place
    assert judge_of(data, "label")(batch.images, batch.texts).all()
    assert judge_of(data, "label")(mirrored, batch.texts).all()
    assert judge_of(data)(mirrored, batch.texts).mean() < 0.7
    wrong = batch.images.roll(1, 0)
    assert judge_of(data, "label")(wrong, batch.texts).mean() < 0.3


def test_who_cannot_be_judged():
    assert judge_of("emoji") is None
    assert judge_of("shapes", "label") is None  # the label of two objects
    assert judge_of("shapes:objects=1", "nothing") is None

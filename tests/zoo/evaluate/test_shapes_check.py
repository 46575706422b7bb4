import attrs
import numpy as np
import pytest
import torch

from zoo.data import drawing, shapes
from zoo.data.shapes import open_shapes, parse
from zoo.errors import BadData
from zoo.evaluate.shapes_check import check, check_labels

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def batch():
    return open_shapes("", split="train", size=32).read(range(400))


@pytest.mark.parametrize(("size", "count"), [(32, 600), (33, 200), (48, 150), (64, 150), (128, 40)])
@pytest.mark.parametrize("split", ["train", "validation", "heldout"])
def test_reads_the_datasets_own_pictures(size, count, split):
    b = open_shapes("", split=split, size=size).read(range(count))
    assert check(b.images, b.texts).mean() > 0.99


def passing(batch, change):
    """Share of pictures that pass under a changed caption; rows for which `change` answers None are left out."""
    changed = [change(parse(text)) for text in batch.texts]
    rows = [i for i, scene in enumerate(changed) if scene is not None]
    assert len(rows) > 40
    return check(batch.images[rows], [changed[i].caption() for i in rows]).mean()


def repaint(scene, which, colour=0, shape=0):
    if which >= len(scene.pairs):
        return None
    pairs = list(scene.pairs)
    c, s = divmod(pairs[which], 4)
    pairs[which] = 4 * ((c + colour) % 6) + (s + shape) % 4
    return attrs.evolve(scene, pairs=tuple(pairs))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("by", [1, 2, 3])
def test_wrong_colour_or_shape_fails(batch, which, by):
    assert passing(batch, lambda s: repaint(s, which, colour=by)) == 0
    assert passing(batch, lambda s: repaint(s, which, shape=by)) < 0.02


def test_swapped_order_wrong_size_and_wrong_place_fail(batch):
    def swap(scene):
        same = scene.kind == shapes.ONE or scene.pairs[0] == scene.pairs[1]
        return None if same else attrs.evolve(scene, pairs=scene.pairs[::-1])

    def only_one(**change):
        return lambda scene: (
            attrs.evolve(scene, **{k: f(scene) for k, f in change.items()}) if scene.kind == shapes.ONE else None
        )

    assert passing(batch, swap) < 0.02
    assert passing(batch, only_one(size=lambda s: 1 - s.size)) == 0
    assert passing(batch, only_one(row=lambda s: (s.row + 1) % 3)) < 0.02
    assert passing(batch, only_one(column=lambda s: (s.column + 2) % 3)) < 0.02


def test_above_is_not_left_of(batch):
    def turn(scene):
        return None if scene.kind == shapes.ONE else attrs.evolve(scene, kind=3 - scene.kind)

    assert passing(batch, turn) < 0.05


@pytest.mark.parametrize("fill", [0.0, 1.0, 240 / 255, float("nan")])
def test_empty_and_senseless_pictures_fail(fill):
    texts = [
        "a small red circle at the top left",
        "a red square above a blue cross",
        "a red square left of a red cross",
    ]
    assert not check(torch.full((3, 3, 32, 32), fill), texts).any()


def test_noise_fails():
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = open_shapes("", split="train", size=32).read(range(64)).texts
    assert check(images, texts).mean() < 0.05


@pytest.mark.parametrize("factor", [1, 2])
def test_fewer_than_eight_pixels_fail(factor):
    image = torch.full((2, 3, 32, 32), 240 / 255)
    image[:, :, 8:11, 8:11] = torch.tensor([220, 40, 40])[:, None, None] / 255
    image[:, :, 8, 8] = 240 / 255  # 8 are left
    image[1, :, 10, 10] = 240 / 255  # 7
    image = image.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    readings = [check(image, [f"a small red {shape} at the top left"] * 2) for shape in drawing.SHAPES]
    assert np.sum(readings, axis=0).tolist() == [1, 0]


def test_verdicts_do_not_depend_on_neighbours(batch):
    texts = [t if i % 3 else batch.texts[i - 1] for i, t in enumerate(batch.texts)]
    whole = check(batch.images, texts)
    assert whole.dtype == np.bool_
    assert 0.6 < whole.mean() < 0.75
    parts = [check(batch.images[i : i + 50], texts[i : i + 50]) for i in range(0, 400, 50)]
    assert np.array_equal(whole, np.concatenate(parts))


def test_labels():
    b = open_shapes("objects=1", split="train", size=32).read(range(300))
    assert check_labels(b.images, b.labels).mean() > 0.99
    assert not check_labels(b.images, (b.labels + 4) % 24).any()
    assert check_labels(b.images, b.labels // 4 * 4 + (b.labels + 1) % 4).mean() < 0.02


def test_refusals():
    with pytest.raises(BadData, match="from 32 px up"):
        check(torch.zeros(1, 3, 16, 16), ["a red circle above a blue square"])
    with pytest.raises(BadData, match="square pictures"):
        check(torch.zeros(1, 3, 32, 64), ["a red circle above a blue square"])
    with pytest.raises(BadData, match="2 pictures for 1"):
        check(torch.zeros(2, 3, 32, 32), ["a red circle above a blue square"])
    with pytest.raises(BadData, match="not a caption"):
        check(torch.zeros(1, 3, 32, 32), ["a heart"])
    with pytest.raises(BadData, match="0 to 23"):
        check_labels(torch.zeros(1, 3, 32, 32), [24])
    assert check(torch.zeros(0, 3, 32, 32), []).shape == (0,)
    assert check_labels(torch.zeros(0, 3, 32, 32), []).shape == (0,)

import itertools
import math

import numpy as np
import pytest
import torch

from zoo.data import drawing, shapes
from zoo.data.shapes import open_shapes, parse, plan
from zoo.errors import BadData, UnknownName
from zoo.interfaces import Batch
from zoo.rng import Rng

torch.set_num_threads(1)
SPLITS = ("train", "validation", "heldout")
UNSEEN = {"purple triangle", "orange circle", "green cross"}


def pairs_of(caption):
    return [shapes.CLASSES[pair] for pair in parse(caption).pairs]


def outline(shape, dx, dy, r):
    """The reference's definition of a point inside, written independently of the drawing."""
    if shape == "circle":
        return dx**2 + dy**2 < r**2
    if shape == "square":
        return (abs(dx) < 0.88 * r) & (abs(dy) < 0.88 * r)
    if shape == "triangle":
        return (-r < dy) & (dy < 0.8 * r) & (abs(dx) < 0.58 * (dy + r))
    return ((abs(dx) < 0.35 * r) & (abs(dy) < r)) | ((abs(dy) < 0.35 * r) & (abs(dx) < r))


def supersampled(objects, row, size, k=16):
    """Paint one picture by testing k x k points a pixel."""
    at = (np.arange(size * k) + 0.5) / k * 32 / size
    x, y = np.meshgrid(at, at)
    picture = np.full((size * k, size * k, 3), 240.0)
    for j in range(int(objects.count[row])):
        pair = int(objects.pair[row, j])
        cx, cy = objects.centre[row, j].tolist()
        inside = outline(drawing.SHAPES[pair % 4], x - cx, y - cy, float(objects.radius[row, j]))
        picture[inside] = drawing.PALETTE[drawing.COLOURS[pair // 4]]
    return picture.reshape(size, k, size, k, 3).mean((1, 3)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [16, 32, 45, 64])
def test_drawing_agrees_with_the_definition(size):
    objects = plan("heldout", range(24)).objects()
    drawn = drawing.draw(objects, size).numpy()
    for row in range(24):
        error = np.abs(drawn[row] - supersampled(objects, row, size))
        assert error.max() <= 200 * 0.3  # a horizontal edge is drawn to a quarter of a pixel
        assert error.mean() < 25 / size


def test_plan_follows_the_table():
    p = plan("train", range(8000))
    kind = torch.bincount(p.kind, minlength=3) / 8000
    assert torch.allclose(kind, torch.tensor([0.5, 0.25, 0.25]), atol=0.02)
    objects = p.objects()
    assert float(p.jitter.abs().max()) <= 1.5
    assert float(p.jitter.abs().mean()) == pytest.approx(0.75, abs=0.02)
    home = (objects.centre - p.jitter).mul(2).round().div(2)
    one, above, left = ((p.kind == k).nonzero()[:, 0] for k in range(3))
    assert set(itertools.chain(*home[one, 0].tolist())) == {9.0, 16.0, 23.0}
    assert torch.allclose(
        home[above], torch.tensor([[16, 8.5], [16, 23.5]]).float().expand(len(above), 2, 2), atol=1e-5
    )
    assert torch.allclose(home[left], torch.tensor([[8.5, 16], [23.5, 16]]).float().expand(len(left), 2, 2), atol=1e-5)
    assert set(objects.radius[one, 0].tolist()) == {4.5, 8.5}
    assert set(objects.radius[torch.cat([above, left])].flatten().tolist()) == {6.0}
    for field, n in ((p.size, 2), (p.row, 3), (p.column, 3)):
        assert torch.allclose(torch.bincount(field) / 8000, torch.full((n,), 1 / n), atol=0.03)
    columns = [parse(t).column for t in p.captions() if t.startswith(("a small", "a large"))]
    assert torch.equal(home[one, 0, 0], torch.tensor([(9.0, 16.0, 23.0)[c] for c in columns]))


@pytest.mark.parametrize("split", SPLITS)
def test_splits_hold_the_pairs_they_should(split):
    texts = list(open_shapes("20000", split=split, size=32).texts())
    has = [bool(UNSEEN.intersection(pairs_of(t))) for t in texts]
    assert all(has) if split == "heldout" else not any(has)
    seen = {pair for t in texts for pair in pairs_of(t)}
    assert seen == (set(shapes.CLASSES) if split == "heldout" else set(shapes.CLASSES) - UNSEEN)


def test_lengths_and_captions():
    assert len(open_shapes("", split="train", size=32)) == 65536
    assert len(open_shapes("5000", split="train", size=32)) == 5000
    assert (
        len(open_shapes("n=50", split="heldout", size=32)) == len(open_shapes("", split="validation", size=32)) == 4096
    )
    d = open_shapes("40", split="train", size=32)
    b = d.read(range(40))
    assert tuple(d.texts()) == b.texts
    assert all(parse(t).caption() == t for t in b.texts)
    assert [d.classes[i] for i in b.labels] == [pairs_of(t)[0] for t in b.texts]


def test_rows_are_the_same_alone_and_together_and_splits_differ():
    d = open_shapes("", split="train", size=32)
    whole = d.read([5, 900, 17, 65535])
    for i, row in enumerate([5, 900, 17, 65535]):
        one = d.read([row])
        assert torch.equal(one.images[0], whole.images[i])
        assert one.texts[0] == whole.texts[i]
    other = open_shapes("", split="validation", size=32).read(range(64))
    assert not torch.equal(other.images, d.read(range(64)).images)
    assert isinstance(whole, Batch)
    assert whole.images.shape == (4, 3, 32, 32)
    assert whole.images.dtype == torch.float32
    assert whole.images.min() >= 0
    assert whole.images.max() <= 1
    with pytest.raises(IndexError):
        d.read([65536])


def test_length_option_keeps_the_first_rows():
    short, full = (open_shapes(p, split="train", size=32) for p in ("100", ""))
    assert torch.equal(short.read([0, 99]).images, full.read([0, 99]).images)


@pytest.mark.parametrize("objects", [1, 2])
def test_objects_option(objects):
    for split in SPLITS:
        d = open_shapes(f"n=300,objects={objects}", split=split, size=16)
        texts = list(d.texts())
        assert all(len(parse(t).pairs) == objects for t in texts)
        if objects == 1 and split == "train":
            assert len(set(d.read(range(300)).labels.tolist())) == 21


@pytest.mark.parametrize("size", [16, 17, 1024])
def test_any_size(size):
    images = open_shapes("", split="heldout", size=size).read([0, 1]).images
    assert images.shape == (2, 3, size, size)
    levels = images * 255
    assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_sizes_show_the_same_scene():
    small, large = (open_shapes("", split="train", size=s).read(range(16)).images for s in (32, 128))
    shrunk = torch.nn.functional.avg_pool2d(large, 4)
    assert float((shrunk - small).abs().max()) < 0.15


def test_transforms():
    fit = open_shapes("", split="train", size=32)
    plain = open_shapes("", split="train", size=32, transform="dalle-eval")
    flip = open_shapes("", split="train", size=32, transform="flip")
    assert not fit.stochastic
    assert flip.stochastic
    assert fit.fingerprint != flip.fingerprint
    a, b = fit.read(range(40)), plain.read(range(40))
    assert torch.equal(a.images, b.images)
    c = flip.read(range(40), Rng(0, range(40)))
    same = (c.images == a.images).flatten(1).all(1)
    mirrored = (c.images == a.images.flip(3)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 8 < int(same.sum()) < 32
    part = flip.read(range(10, 20), Rng(0, range(40))[10:20])
    assert torch.equal(part.images, c.images[10:20])


def test_fingerprint_changes_with_what_is_read():
    prints = [
        open_shapes(p, split=s, size=z).fingerprint for p in ("", "100", "objects=1") for s in SPLITS for z in (32, 64)
    ]
    assert len(set(prints)) == len(prints) - 4  # n is train's alone


@pytest.mark.parametrize(
    ("path", "split", "size", "transform", "error"),
    [
        ("n=0", "train", 32, "fit", BadData),
        ("objects=3", "train", 32, "fit", BadData),
        ("object=1", "train", 32, "fit", UnknownName),
        ("", "test", 32, "fit", UnknownName),
        ("", "train", 32, "fitt", UnknownName),
        ("", "train", 15, "fit", BadData),
        ("", "train", 1025, "fit", BadData),
    ],
)
def test_bad_requests(path, split, size, transform, error):
    with pytest.raises(error) as caught:
        open_shapes(path, split=split, size=size, transform=transform)
    assert "\n" not in str(caught.value)


def test_parse_refuses_other_captions():
    assert parse(" A Red circle  above a blue SQUARE ").caption() == "a red circle above a blue square"
    for text in ("", "a red circle", "a pink circle above a red square", "a red circle above a blue square."):
        with pytest.raises(BadData):
            parse(text)


def test_coverage_equals_area():
    """The summed coverage of an outline is its area, for outlines that lie inside the picture."""
    r = 8.0
    areas = {"circle": math.pi * r**2, "square": (1.76 * r) ** 2, "triangle": 0.58 * (1.8 * r) ** 2}
    areas["cross"] = 2 * (0.7 * r * 2 * r) - (0.7 * r) ** 2
    for k, name in enumerate(drawing.SHAPES):
        objects = drawing.Objects(
            torch.full((1, 2), k), torch.full((1, 2, 2), 16.0), torch.full((1, 2), r), torch.ones(1, dtype=torch.int64)
        )
        cover = (240 - drawing.draw(objects, 256)[0, 1]) / 200  # red's green channel is 40
        assert float(cover.sum()) / 64 == pytest.approx(areas[name], rel=0.01)


def test_labels_are_known_without_drawing():
    data = open_shapes("", split="validation", size=16)
    rows = [5, 0, 4095]
    assert data.labels(rows).tolist() == data.read(rows).labels.tolist()

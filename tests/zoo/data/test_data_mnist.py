"""IDX files: MNIST and Fashion-MNIST."""

import numpy as np
import pytest
from labelled_files import digits, idx, write_mnist

from zoo.data import mnist
from zoo.data.labelled import held_out
from zoo.errors import BadData, UnknownName
from zoo.registry import open_dataset


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_pictures_labels_and_captions_are_the_files(tmp_path, ending):
    write_mnist(tmp_path, ending=ending)
    data = open_dataset(f"mnist:{tmp_path}", split="heldout", size=28)
    pixels, labels = digits(40, len("t10k"))
    batch = data.read([3, 0])
    assert data.classes == tuple("0123456789")
    assert batch.images.shape == (2, 3, 28, 28)
    assert np.array_equal(batch.images[0].mul(255).round().numpy(), np.stack([pixels[3]] * 3))
    assert batch.labels.tolist() == [labels[3], labels[0]]
    assert batch.texts == ("the digit 3", "the digit 0")
    assert data.labels([3, 0]).tolist() == batch.labels.tolist()
    assert list(data.texts())[3] == "the digit 3"


def test_a_fixed_tenth_of_training_is_validation(tmp_path):
    write_mnist(tmp_path)
    train, validation = (open_dataset(f"mnist:{tmp_path}", split=s, size=28) for s in ("train", "validation"))
    assert (len(train), len(validation)) == (90, 10)
    pixels, _ = digits(100, len("train"))
    held = held_out(100)
    for data, rows in ((train, np.flatnonzero(~held)), (validation, np.flatnonzero(held))):
        read = data.read(range(len(data))).images[:, 0].mul(255).round().numpy()
        assert np.array_equal(read, pixels[rows])
    assert np.array_equal(held, held_out(100))
    assert len({train.fingerprint, validation.fingerprint}) == 2


def test_pictures_come_in_the_size_asked_for_and_the_fingerprint_says_so(tmp_path):
    write_mnist(tmp_path)
    one, two = (open_dataset(f"mnist:{tmp_path}", split="train", size=size) for size in (28, 32))
    assert two.read([0]).images.shape == (1, 3, 32, 32)
    assert one.fingerprint != two.fingerprint


def test_fashion_has_its_own_classes_and_articles(tmp_path):
    write_mnist(tmp_path / "FashionMNIST" / "raw", ending=".gz")  # as torchvision puts it
    data = open_dataset(f"fashion-mnist:{tmp_path}", split="heldout", size=28)
    assert data.read([9, 1]).texts == ("a picture of an ankle boot", "a picture of a trouser")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda data: data[:-7], "7849 bytes, not the 7856 of 10 x 28 x 28"),
        (lambda data: b"PNG" + data, "not an IDX file"),
        (lambda data: b"", "begins with nothing"),
        (lambda data: idx(np.zeros((10, 28))), "has 2 dimensions where 3 are expected"),
        (lambda data: idx(np.zeros((9, 28, 28))), "10 labels for the 9 pictures"),
    ],
)
def test_wrong_files_are_named(tmp_path, spoil, line):
    write_mnist(tmp_path, test=10)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(BadData) as caught:
        open_dataset(f"mnist:{tmp_path}", split="heldout", size=28)
    assert "\n" not in str(caught.value)
    assert line in str(caught.value)


def test_a_label_out_of_range_and_a_damaged_gz_are_named(tmp_path):
    write_mnist(tmp_path, ending=".gz")
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-12])
    with pytest.raises(BadData, match=r"train-labels.*damaged or not gzip"):
        open_dataset(f"mnist:{tmp_path}", split="train", size=28)
    path.unlink()
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.full(100, 11)))
    with pytest.raises(BadData, match=r"label 11 is none of the 10 classes"):
        open_dataset(f"mnist:{tmp_path}", split="train", size=28)


def test_what_is_missing_says_where_it_comes_from(tmp_path):
    with pytest.raises(BadData, match=r"train-images-idx3-ubyte .*ossci-datasets.*mnist:FOLDER"):
        open_dataset(f"mnist:{tmp_path}", split="train", size=28)
    with pytest.raises(BadData, match=r"there is no folder 'nowhere'; write mnist:FOLDER"):
        open_dataset("mnist:nowhere", split="train", size=28)
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.touch()
    with pytest.raises(BadData, match="unpack it: tar xzf"):
        open_dataset(f"cifar10:{archive}", split="train", size=28)
    with pytest.raises(UnknownName, match="did you mean 'heldout'"):
        mnist.open_mnist(str(tmp_path), split="held-out", size=28)

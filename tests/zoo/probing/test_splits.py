"""Which pictures judge: the held-out ones, unless the data have none or they are of other classes."""

import numpy as np
import pytest
from labelled_files import write_cifar100, write_mnist
from PIL import Image

from zoo.errors import BadData
from zoo.probing.splits import splits


def pictures(folder, count=30):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / f"{i}.png")


def test_a_test_file_that_cannot_be_read_is_said_and_not_replaced(tmp_path):
    write_mnist(tmp_path)
    file = tmp_path / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(BadData, match=r"t10k-images-idx3-ubyte: .*download it again"):
        splits(f"mnist:{tmp_path}", size=8)
    file.unlink()
    with pytest.raises(BadData, match="no t10k-images-idx3-ubyte"):
        splits(f"mnist:{tmp_path}", size=8)


def test_a_folder_without_held_out_pictures_is_judged_on_validation(tmp_path):
    for name in ("cat", "dog"):
        pictures(tmp_path / "train" / name)
        pictures(tmp_path / "validation" / name)
    assert splits(f"folder:{tmp_path}", size=8).note == "validation (the data has no heldout split)"
    (tmp_path / "heldout").mkdir()
    with pytest.raises(BadData, match="has no pictures"):
        splits(f"folder:{tmp_path}", size=8)
    pictures(tmp_path / "heldout" / "cat")
    assert splits(f"folder:{tmp_path}", size=8).note == "heldout"


def test_few_pictures_to_fit_on_do_not_change_what_judges(tmp_path):
    write_cifar100(tmp_path, train=2000, test=100)
    found = splits(f"cifar100:{tmp_path}", size=8, pictures=50)
    assert found.note == "heldout"
    assert (len(found.train), len(found.validation), len(found.test)) == (50, 200, 100)

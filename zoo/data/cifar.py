"""`cifar10` and `cifar100`: 32 x 32 colour pictures of 10 and 100 classes, from local files; nothing is downloaded.

    --data cifar10:FOLDER      FOLDER is cifar-10-batches-py or cifar-10-batches-bin, or holds it
    --data cifar100:FOLDER     likewise cifar-100-python or cifar-100-binary; the labels are the 100 fine classes

The python version [1] is pickles, which `zoo.data.plain_pickle` reads without running anything that they name. In the
binary version a picture is its label (coarse and fine in CIFAR-100) and 3072 bytes, red, green and blue planes.

[1] A. Krizhevsky: Learning multiple layers of features from tiny images. 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from zoo.data import base, transforms
from zoo.data.labelled import LabelledData, Pictures, Source, check_labels, cut
from zoo.data.plain_pickle import read_plain
from zoo.errors import BadData

SIDE, COLOURS = 32, 3
_VALUES = COLOURS * SIDE * SIDE
_HOME = "https://www.cs.toronto.edu/~kriz/cifar.html"
CIFAR10 = Source(
    name="cifar10",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    caption="a photo of {a}",
    home=f"{_HOME} (CIFAR-10 python version)",
)
CIFAR100 = Source(
    name="cifar100",
    classes=(
        "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
        "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
        "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
        "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
        "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
        "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
        "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
        "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
        "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
        "willow_tree", "wolf", "woman", "worm",
    ),
    caption="a photo of {a}",
    home=f"{_HOME} (CIFAR-100 python version)",
)  # fmt: skip


@attrs.frozen
class Layout:
    """Where a version of a set keeps its pictures."""

    folder: str
    train: tuple[str, ...]
    test: str
    labels: str
    """Key of the labels in a pickle; "" for the binary version."""
    skip: int = 0
    """Bytes before the label in the binary version."""


_LAYOUTS = {
    "cifar10": (
        Layout("cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "labels"),
        Layout("cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", ""),
    ),
    "cifar100": (
        Layout("cifar-100-python", ("train",), "test", "fine_labels"),
        Layout("cifar-100-binary", ("train.bin",), "test.bin", "", skip=1),
    ),
}


def _find(source: Source, folder: Path) -> tuple[Path, Layout]:
    """Return where the files are and in which version."""
    for layout in _LAYOUTS[source.name]:
        for place in (folder, folder / layout.folder):
            if (place / layout.train[0]).is_file():
                return place, layout
    first = _LAYOUTS[source.name][0]
    raise source.missing(folder, f"{first.train[0]} ({first.folder})")


def _from_pickle(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    found = read_plain(path)
    if not isinstance(found, Mapping):
        raise BadData(f"{path}: holds a {type(found).__name__}, not a batch of CIFAR (a dict of data and {key})")
    batch = {k.decode("latin-1") if isinstance(k, bytes) else k: x for k, x in found.items()}
    missing = [name for name in ("data", key) if name not in batch]
    if missing:
        held = ", ".join(map(str, batch)) or "nothing"
        raise BadData(f"{path}: a batch without '{missing[0]}' (it has {held}): is it of another set?")
    return _planes(path, batch["data"]), _labels(path, batch[key])


def _planes(path: Path, data: Any) -> np.ndarray:
    """Return the pictures [n,3072] of a batch."""
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != _VALUES:
        shape = list(data.shape) if isinstance(data, np.ndarray) else type(data).__name__
        raise BadData(f"{path}: 'data' is {shape}, not [pictures,{_VALUES}]")
    if data.dtype != np.uint8:
        raise BadData(f"{path}: 'data' holds {data.dtype}, not bytes (uint8)")
    return data


def _labels(path: Path, labels: Any) -> np.ndarray:
    if isinstance(labels, np.ndarray) and labels.ndim == 1:
        return labels
    if not isinstance(labels, list) or not all(type(x) is int for x in labels):
        raise BadData(f"{path}: its labels are not a list of whole numbers")
    return np.array(labels, dtype=np.int64)


def _from_binary(path: Path, skip: int) -> tuple[np.ndarray, np.ndarray]:
    row = skip + 1 + _VALUES
    data = np.fromfile(path, np.uint8)
    if len(data) == 0 or len(data) % row:
        raise BadData(f"{path}: {len(data)} bytes, not a multiple of the {row} a picture takes; download it again")
    rows = data.reshape(-1, row)
    return rows[:, skip + 1 :], rows[:, skip]


def _read(source: Source, path: Path, layout: Layout) -> Pictures:
    """Return the pictures of one file."""
    if not path.is_file():
        raise source.missing(path.parent, path.name)
    pixels, labels = _from_pickle(path, layout.labels) if layout.labels else _from_binary(path, layout.skip)
    if len(pixels) != len(labels) or len(labels) == 0:
        raise BadData(f"{path}: {len(labels)} labels for {len(pixels)} pictures")
    planes = pixels.reshape(-1, COLOURS, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Pictures(planes, check_labels(source, labels, path))


def _open(source: Source, path: str, split: str, size: int, transform: str) -> LabelledData:
    base.check_split(split)
    law = transforms.get(transform)
    folder, layout = _find(source, source.folder(path))
    names = (layout.test,) if split == "heldout" else layout.train
    read = [_read(source, folder / name, layout) for name in names]
    found = Pictures(np.concatenate([x.pixels for x in read]), np.concatenate([x.labels for x in read]))
    return LabelledData(source, path, split, size, law, cut(found, split))


def open_cifar10(path: str, *, split: str, size: int, transform: str = "fit") -> LabelledData:
    """Open "cifar10:FOLDER".

    Args:
        path: the folder of the batches, or the one above.
        split: "train", "validation" (a tenth of the training batches) or "heldout" (the test batch).
        size: side of the pictures, in pixels; 32 leaves them as they are.
        transform: a name of `zoo.data.transforms`.

    Raises:
        UnknownName: no such split or transform.
        BadData: a file is missing, truncated, another one, or would run code when unpickled.
    """
    return _open(CIFAR10, path, split, size, transform)


def open_cifar100(path: str, *, split: str, size: int, transform: str = "fit") -> LabelledData:
    """Open "cifar100:FOLDER", with the 100 fine labels; see `open_cifar10`."""
    return _open(CIFAR100, path, split, size, transform)

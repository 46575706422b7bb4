"""`mnist` and `fashion-mnist`: 28 x 28 grey pictures of ten classes, from local IDX files; nothing is downloaded.

    --data mnist:FOLDER        FOLDER has train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
                               t10k-labels-idx1-ubyte, plain or .gz; it may also be the folder that torchvision made

An IDX file is a big-endian header (two zero bytes, a type, the number of dimensions, their sizes) and the values [1].

[1] Y. LeCun, C. Cortes, C. Burges: The MNIST database of handwritten digits. 1998.
[2] H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST. arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np

from zoo.data import base, transforms
from zoo.data.labelled import LabelledData, Pictures, Source, check_labels, cut
from zoo.errors import BadData

MNIST = Source(
    name="mnist",
    classes=tuple("0123456789"),
    caption="the digit {}",
    home="https://ossci-datasets.s3.amazonaws.com/mnist/ (the four .gz files)",
)
FASHION = Source(
    name="fashion-mnist",
    classes=("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
    caption="a picture of {a}",
    home="https://github.com/zalandoresearch/fashion-mnist (data/fashion, the four .gz files)",
)
_BELOW = ("", "raw", "MNIST/raw", "FashionMNIST/raw")
"""Where in a folder the files may lie; torchvision puts them deeper."""
_BYTES = 0x08
"""IDX's code for unsigned bytes, the only type these sets use."""
_MOST = 1 << 30
"""Bytes of one file, at most: a few that unpack to all of the memory are refused."""


def find(source: Source, folder: Path, stem: str, dimensions: int) -> Path:
    """Return the file of a name such as "train-images", however its ending is written.

    Raises:
        BadData: it is not there.
    """
    wanted = f"{stem}-idx{dimensions}-ubyte"
    for below in _BELOW:
        for name in (wanted, f"{stem}.idx{dimensions}-ubyte"):
            for ending in ("", ".gz"):
                if (path := folder / below / f"{name}{ending}").is_file():
                    return path
    raise source.missing(folder, f"{wanted} (or {wanted}.gz)")


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return the values of an IDX file of unsigned bytes.

    Raises:
        BadData: it is no such file, has another number of dimensions, or is truncated.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_MOST + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise BadData(f"{path}: damaged or not gzip ({error}); download it again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _BYTES:
        raise BadData(f"{path}: not an IDX file of bytes (begins with {data[:4].hex(' ') or 'nothing'}, not 00 00 08)")
    if data[3] != dimensions:
        raise BadData(f"{path}: has {data[3]} dimensions where {dimensions} are expected: is it another file?")
    header = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4))
    if len(data) != header + prod(shape):
        sizes = " x ".join(map(str, shape))
        raise BadData(f"{path}: {len(data)} bytes, not the {header + prod(shape)} of {sizes} values; download it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _open(source: Source, path: str, split: str, size: int, transform: str) -> LabelledData:
    base.check_split(split)
    law, folder = transforms.get(transform), source.folder(path)
    stem = "t10k" if split == "heldout" else "train"
    of_pixels, of_labels = find(source, folder, f"{stem}-images", 3), find(source, folder, f"{stem}-labels", 1)
    pixels, labels = read_idx(of_pixels, 3), read_idx(of_labels, 1)
    if len(pixels) != len(labels) or len(labels) == 0:
        raise BadData(f"{of_labels}: {len(labels)} labels for the {len(pixels)} pictures of {of_pixels.name}")
    found = Pictures(pixels, check_labels(source, labels, of_labels))
    return LabelledData(source, path, split, size, law, cut(found, split))


def open_mnist(path: str, *, split: str, size: int, transform: str = "fit") -> LabelledData:
    """Open "mnist:FOLDER".

    Args:
        path: the folder of the IDX files.
        split: "train", "validation" (a tenth of the training file) or "heldout" (the test file).
        size: side of the pictures, in pixels; they are enlarged or reduced from 28.
        transform: a name of `zoo.data.transforms`.

    Raises:
        UnknownName: no such split or transform.
        BadData: a file is missing, truncated or another one.
    """
    return _open(MNIST, path, split, size, transform)


def open_fashion(path: str, *, split: str, size: int, transform: str = "fit") -> LabelledData:
    """Open "fashion-mnist:FOLDER"; see `open_mnist`."""
    return _open(FASHION, path, split, size, transform)

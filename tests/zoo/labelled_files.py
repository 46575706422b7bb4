"""Small MNIST and CIFAR files in the true formats, written by hand."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np


def idx(values: np.ndarray) -> bytes:
    """Return an IDX file of unsigned bytes."""
    sizes = b"".join(n.to_bytes(4, "big") for n in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def digits(n: int, seed: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Return pictures [n,28,28] whose class is the height of a bright bar, and their labels, every class as often."""
    labels = np.arange(n) % classes
    pixels = np.random.default_rng(seed).integers(0, 60, (n, 28, 28))
    for i, label in enumerate(labels):
        pixels[i, 2 * label + 4 : 2 * label + 8, 4:24] = 250
    return pixels.astype(np.uint8), labels


def write_mnist(folder: Path, train: int = 100, test: int = 40, ending: str = "", classes: int = 10) -> Path:
    """Write the four files; with ".gz" compressed."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, n in (("train", train), ("t10k", test)):
        pixels, labels = digits(n, len(stem), classes)
        for name, values in ((f"{stem}-images-idx3-ubyte", pixels), (f"{stem}-labels-idx1-ubyte", labels)):
            data = idx(values)
            (folder / f"{name}{ending}").write_bytes(gzip.compress(data, 1) if ending else data)
    return folder


class _Python2(pickle._Pickler):  # type: ignore[name-defined]
    """Pickles bytes as Python 2 did its strings."""

    dispatch = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]  # noqa: RUF012

    def save_string(self, text: bytes) -> None:
        self.write(pickle.BINSTRING + len(text).to_bytes(4, "little") + text)
        self.memoize(text)

    dispatch[bytes] = save_string


def python2_pickle(found: Any) -> bytes:
    """Return what cPickle of Python 2 wrote at protocol 2, with the numpy of its time."""
    buffer = io.BytesIO()
    _Python2(buffer, 2).dump(found)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def cifar_rows(n: int, seed: int, classes: int) -> tuple[np.ndarray, list[int]]:
    """Return planes [n,3072] and labels."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072)).astype(np.uint8), rng.integers(0, classes, n).tolist()


def write_cifar10(folder: Path, each: int = 20) -> Path:
    """Write the python version, into the folder that the archive has."""
    folder = folder / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        data, labels = cifar_rows(each, i, 10)
        files = [b"picture_%d.png" % k for k in range(each)]
        batch = {b"batch_label": b"batch", b"labels": labels, b"data": data, b"filenames": files}
        (folder / name).write_bytes(python2_pickle(batch))
    return folder


def write_cifar100(folder: Path, train: int = 50, test: int = 20) -> Path:
    """Write the python version."""
    folder = folder / "cifar-100-python"
    folder.mkdir(parents=True)
    for i, (name, n) in enumerate((("train", train), ("test", test))):
        data, fine = cifar_rows(n, i, 100)
        batch = {b"data": data, b"fine_labels": fine, b"coarse_labels": [x // 5 for x in fine], b"filenames": []}
        (folder / name).write_bytes(python2_pickle(batch))
    return folder

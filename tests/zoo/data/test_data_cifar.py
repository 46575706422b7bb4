"""CIFAR's python and binary versions, and the unpickler that runs nothing."""

import pickle

import numpy as np
import pytest
from labelled_files import cifar_rows, python2_pickle, write_cifar10, write_cifar100

from zoo.data.plain_pickle import read_plain
from zoo.errors import BadData
from zoo.registry import open_dataset


def test_the_python_version_reads_as_what_was_written(tmp_path):
    write_cifar10(tmp_path)
    planes, labels = cifar_rows(20, 5, 10)  # of the sixth file, the test batch
    data = open_dataset(f"cifar10:{tmp_path}", split="heldout", size=32)
    batch = data.read(range(len(data)))
    assert np.array_equal(batch.images.mul(255).round().byte().flatten(1).numpy(), planes)
    assert batch.labels.tolist() == labels
    assert data.classes[3] == "cat"
    assert batch.texts[0] == f"a photo of a{'n' * (batch.labels[0] in (0, 1))} {data.classes[batch.labels[0]]}"


def test_five_batches_make_train_and_validation(tmp_path):
    folder = write_cifar10(tmp_path)
    sizes = [len(open_dataset(f"cifar10:{folder}", split=s, size=32)) for s in ("train", "validation", "heldout")]
    assert sizes == [90, 10, 20]


def test_the_fine_labels_of_cifar100(tmp_path):
    write_cifar100(tmp_path)
    data = open_dataset(f"cifar100:{tmp_path}", split="heldout", size=32)
    _, fine = cifar_rows(20, 1, 100)
    assert data.labels(range(20)).tolist() == fine
    assert (len(data.classes), data.classes[53], data.classes[99]) == (100, "orange", "worm")


def test_the_binary_versions(tmp_path):
    ten, hundred = tmp_path / "cifar-10-batches-bin", tmp_path / "cifar-100-binary"
    data, labels = cifar_rows(8, 0, 10)
    for folder, names, coarse in ((ten, [f"data_batch_{i}" for i in range(1, 6)], 0), (hundred, ["train"], 1)):
        folder.mkdir()
        rows = np.hstack([np.zeros((8, coarse), np.uint8), np.array(labels, np.uint8)[:, None], data])
        for name in [*names, "test_batch" if coarse == 0 else "test"]:
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
    for uri in (f"cifar10:{tmp_path}", f"cifar100:{hundred}"):
        batch = open_dataset(uri, split="heldout", size=32).read(range(8))
        assert batch.labels.tolist() == labels
        assert np.array_equal(batch.images.mul(255).round().byte().flatten(1).numpy(), data)
    (ten / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(BadData, match=r"test_batch\.bin: 5 bytes, not a multiple of the 3073"):
        open_dataset(f"cifar10:{ten}", split="heldout", size=32)


class Evil:
    """Writes a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, protocol):
    folder, trace = write_cifar10(tmp_path), tmp_path / "trace"
    (folder / "test_batch").write_bytes(pickle.dumps({"data": Evil(trace), "labels": [1]}, protocol))
    with pytest.raises(BadData, match=r"test_batch: .*names (_?io|builtins)\.open, which is refused"):
        open_dataset(f"cifar10:{folder}", split="heldout", size=32)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({"data": np.zeros((2, 3072), np.float64), "labels": [0, 1]}, "array of type f8, which is refused"),
        ({"data": np.array([Evil, 1], dtype=object)}, "names .*Evil, which is refused"),
        ({"data": np.zeros((2, 100), np.uint8), "labels": [0, 1]}, r"'data' is \[2, 100\], not \[pictures,3072\]"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "1 labels for 2 pictures"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}, "label 10 is none of the 10 classes"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": ["a", "b"]}, "labels are not a list of whole numbers"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 1]}, "a batch without 'labels'"),
        ([1, 2], "holds a list, not a batch of CIFAR"),
    ],
)
def test_wrong_batches_are_named(tmp_path, found, line):
    folder = write_cifar10(tmp_path)
    (folder / "test_batch").write_bytes(pickle.dumps(found, 2))
    with pytest.raises(BadData, match=line) as caught:
        open_dataset(f"cifar10:{folder}", split="heldout", size=32)
    assert "\n" not in str(caught.value)


def test_a_truncated_pickle_and_one_without_end_are_named(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(python2_pickle({b"labels": list(range(100))})[:-20])
    with pytest.raises(BadData, match=r"batch: cannot be read .*download it again"):
        read_plain(path)
    endless: list = []
    endless.append(endless)
    path.write_bytes(pickle.dumps(endless))
    with pytest.raises(BadData, match="nested without end"):
        read_plain(path)
    wide: list = [1]
    for _ in range(9):
        wide = [wide] * 100  # 10^18 numbers, if each reference were followed
    path.write_bytes(pickle.dumps(wide))
    assert len(read_plain(path)) == 100


def test_plain_data_comes_back_whole_also_from_python_3(tmp_path):
    path = tmp_path / "plain"
    found = {"a": [1, (2.5, None)], "b": np.arange(6).reshape(2, 3), "c": np.asfortranarray(np.ones((2, 3), np.uint8))}
    for protocol in (2, 3, 4):
        path.write_bytes(pickle.dumps(found, protocol))
        again = read_plain(path)
        keys = {k.decode() if isinstance(k, bytes) else k: x for k, x in again.items()}
        assert keys["a"] == [1, (2.5, None)]
        assert np.array_equal(keys["b"], found["b"])
        assert np.array_equal(keys["c"], found["c"])


def test_no_file_can_change_the_reader_for_the_next(tmp_path):
    """BUILD sets attributes of what it is given, functions of the reader among them."""
    path = tmp_path / "sly"
    attack = b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__)s\x86b."
    path.write_bytes(attack)
    with pytest.raises(BadData):
        read_plain(path)
    path.write_bytes(pickle.dumps(b"bytes", 2))
    assert read_plain(path) == b"bytes"


def test_pictures_that_are_no_bytes_are_refused(tmp_path):
    folder = write_cifar10(tmp_path)
    data, labels = cifar_rows(4, 0, 10)
    (folder / "test_batch").write_bytes(python2_pickle({b"data": data.astype(np.int64), b"labels": labels}))
    with pytest.raises(BadData, match=r"test_batch: 'data' holds int64, not bytes"):
        open_dataset(f"cifar10:{folder}", split="heldout", size=32)

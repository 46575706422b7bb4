"""`folder`: the user's own pictures, `--data folder:PATH`; png, jpg, jpeg and webp in any depth.

Captions come from a .txt beside the picture, else from `captions.jsonl` or `captions.csv` (see
`zoo.data.captions`); a picture with several is read once with each. When every picture lies in a subfolder, the top
subfolder is its label. Names that begin with a dot are left out, links to folders are not followed, and no link and
no captions file may lead out of the folder.

Splits: subfolders named train, validation and heldout are the splits. Without a `validation` subfolder, a picture
whose path without its ending has a hash below 0.05 is validation (of two and more, each split has at least one).
`heldout` exists as a subfolder only.

Broken files: opening the folder reads every header, so what is no picture or has too many pixels is known at once;
damage behind the header shows when the picture is read, and the next good row of the dataset takes its place. Either
way the file is named in one warning and counted in `broken`. More than a tenth of the files (of few files: more than
three, or more than half) is an error.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import attrs
import numpy as np

from zoo.data import base, transforms
from zoo.data.captions import inside, listed, sidecar
from zoo.data.pictures import SUFFIXES, check_header, open_picture
from zoo.errors import BadData, NoSplit
from zoo.interfaces import Batch
from zoo.rng import Rng

_VALIDATION = 0.05
_NAMED = 5


@attrs.frozen
class Row:
    """One picture with one caption."""

    file: Path
    text: str | None
    label: int


@attrs.define
class Broken:
    """The files that cannot be read, and how many there are in all."""

    root: Path
    total: int
    files: dict[str, str] = attrs.field(factory=dict)
    """File -> reason."""

    def add(self, file: Path, reason: str) -> None:
        """Count one file; raises BadData when they are too many."""
        self.files[str(file)] = reason
        allowed = max(self.total // 10, min(3, self.total // 2))
        if len(self.files) > allowed:
            raise BadData(f"{self.root}: {len(self.files)} of {self.total} pictures are broken, the last: {reason}")


def _listing(root: Path) -> list[str]:
    """Return every picture file below `root`, relative, with forward slashes, sorted."""

    def refuse(error: OSError) -> None:
        raise BadData(f"{error.filename} cannot be read: {error.strerror}") from error

    found = []
    for folder, subfolders, files in os.walk(root, onerror=refuse):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        here = Path(folder)
        found += [
            (here / name).relative_to(root).as_posix()
            for name in files
            if not name.startswith(".") and name.lower().endswith(SUFFIXES)
        ]
    return sorted(found)


def _good(root: Path, files: Sequence[str], broken: Broken) -> list[str]:
    """Return the files whose header can be read."""
    good = []
    for name in files:
        path = root / name
        try:
            if path.is_symlink() and not inside(root, path):
                raise BadData(f"{path}: a link that leads out of the folder")
            if not path.is_file():
                raise BadData(f"{path}: not a file")
            check_header(path)
            good.append(name)
        except BadData as error:
            broken.add(path, str(error))
    if broken.files:
        named = "; ".join(list(broken.files.values())[:_NAMED])
        more = f"; and {len(broken.files) - _NAMED} more" if len(broken.files) > _NAMED else ""
        warnings.warn(f"skipped {len(broken.files)} of {broken.total} pictures: {named}{more}", stacklevel=4)
    return good


def hashed_validation(files: Sequence[str]) -> set[str]:
    """Return the files that are validation, by the hash of each path without its ending.

    Files that differ in the ending only stay together. Of two stems and more, at least one is on each side.
    """
    number = {}
    for file in files:
        stem = PurePosixPath(file).with_suffix("").as_posix()
        number[stem] = int.from_bytes(hashlib.sha256(stem.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64
    order = sorted(number, key=lambda stem: (number[stem], stem))
    count = sum(value < _VALIDATION for value in number.values())
    chosen = set(order[: min(max(count, 1), len(order) - 1)]) if order else set()
    return {file for file in files if PurePosixPath(file).with_suffix("").as_posix() in chosen}


def _split_root(top: Path, split: str) -> tuple[Path, list[Path]]:
    """Return the folder to read a split from, and every folder that holds a split (none: cut by hash alone)."""
    present = [name for name in base.SPLITS if (top / name).is_dir()]
    for name in present:
        if not inside(top, top / name):
            raise BadData(f"{top / name} is a link that leads out of the folder")
    if present and "train" not in present:
        raise BadData(f"{top} has a subfolder '{present[0]}' but none named 'train'")
    if split == "heldout" and split not in present:
        raise NoSplit(f"{top} has no held-out pictures; put them in a subfolder 'heldout', the others in 'train'")
    folders = [top / name for name in present]
    return (top / (split if split in present else "train") if present else top), folders


def _classes(files: Sequence[str]) -> tuple[str, ...] | None:
    """Return the top subfolders, sorted; None when a picture lies in none."""
    if any("/" not in file for file in files):
        return None
    return tuple(sorted({PurePosixPath(file).parts[0] for file in files}))


def _captions(top: Path, root: Path, files: Sequence[str]) -> dict[str, list[str]]:
    """Return the listed captions of a split's folder, from the lists there and, with its name in front, at the top."""
    captions = listed(root)
    lost = [name for name in captions if name not in set(files)] if captions else []
    if lost:
        warnings.warn(f"{root}: {len(lost)} captions name no picture here, the first '{lost[0]}'", stacklevel=4)
    if root != top:
        front = f"{root.name}/"
        above = {name.removeprefix(front): texts for name, texts in listed(top).items() if name.startswith(front)}
        captions = above | captions
    return captions


def _rows(
    root: Path, files: Sequence[str], captions: Mapping[str, list[str]], classes: Sequence[str] | None
) -> list[Row]:
    """Return a row for each caption of each picture; where only some have one, the others read as ''."""
    number = {name: i for i, name in enumerate(classes or ())}
    rows = []
    for file in files:
        texts: Sequence[str | None] = sidecar(root, root / file) or captions.get(file) or [None]
        label = number[PurePosixPath(file).parts[0]] if number else -1
        rows += [Row(root / file, text, label) for text in texts]
    bare = [row for row in rows if row.text is None]
    if not bare or len(bare) == len(rows):
        return rows
    warnings.warn(f"{root}: {len(bare)} pictures have no caption, the first {bare[0].file}", stacklevel=4)
    return [attrs.evolve(row, text=row.text or "") for row in rows]


class FolderData:
    """The dataset; keeps the `Dataset` contract. Captions are None when no picture has one."""

    def __init__(
        self,
        uri: str,
        split: str,
        size: int,
        transform: transforms.Transform,
        rows: Sequence[Row],
        classes: tuple[str, ...] | None,
        broken: Broken,
    ) -> None:
        self.uri, self.split, self.size, self.transform = uri, split, size, transform
        self.classes, self.stochastic = classes, transform.stochastic
        self._rows, self._broken = tuple(rows), broken
        states = [(str(row.file), row.text, row.label, *_state(row.file)) for row in rows]
        self.fingerprint = base.fingerprint("folder 1", split, size, transform.name, classes, states)

    @property
    def broken(self) -> dict[str, str]:
        """The files that could not be read so far, with the reason."""
        return dict(self._broken.files)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: Sequence[int], rng: Rng | None = None) -> Batch:
        """Return images [B,3,size,size] in [0, 1], captions and labels where there are any.

        Raises:
            BadData: too many files are broken.
        """
        numbers = base.random_numbers(self.transform, rows, rng)
        pixels = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        read = [self._read_good(int(row), number, out) for row, number, out in zip(rows, numbers, pixels, strict=True)]
        texts = None if read and read[0].text is None else [row.text or "" for row in read]
        return base.to_batch(pixels, texts, [row.label for row in read] if self.classes else None)

    def _read_good(self, index: int, numbers: np.ndarray, out: np.ndarray) -> Row:
        """Read this row, or the next that can be read, into `out`; return which one it was."""
        for i in range(index, index + len(self)):
            row = self._rows[i % len(self)]
            if str(row.file) in self._broken.files:
                continue
            try:
                out[:] = self.transform(open_picture(row.file), self.size, numbers)
            except BadData as error:
                self._broken.add(row.file, str(error))
                warnings.warn(f"skipped a picture: {error}", stacklevel=4)
            else:
                return row
        raise BadData(f"{self.uri}: none of its {len(self)} {self.split} pictures can be read")

    def labels(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the labels of these rows, int64 [n], without reading pictures; -1 where there are no classes."""
        return np.array([self._rows[int(row)].label for row in rows], dtype=np.int64)

    def texts(self) -> Iterator[str]:
        """Yield every caption.

        Raises:
            BadData: there are none.
        """
        if self._rows[0].text is None:
            raise BadData(f"{self.uri} has no captions; add .txt files, captions.jsonl or captions.csv")
        for row in self._rows:
            yield row.text or ""


def _state(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_size, status.st_mtime_ns


def open_folder(path: str, *, split: str, size: int, transform: str = "fit") -> FolderData:
    """Open "folder:PATH".

    Args:
        path: a folder; `~` is the home folder.
        split: "train", "validation" or "heldout".
        size: side of the pictures, in pixels.
        transform: a name of `zoo.data.transforms`.

    Raises:
        UnknownName: no such split or transform.
        NoSplit: it has no held-out pictures.
        BadData: no such folder, no pictures in it, too many of them broken, or unreadable captions.
    """
    base.check_split(split)
    law = transforms.get(transform)
    top = Path(path).expanduser()
    if not path or not top.is_dir():
        raise BadData(f"there is no folder '{path}'; write folder:PATH")
    root, folders = _split_root(top, split)
    files = _listing(root)
    if not files:
        raise BadData(f"{root} has no pictures ({', '.join(SUFFIXES)})")
    classes = _classes([file for folder in folders or [root] for file in _listing(folder)])
    captions = _captions(top, root, files)
    broken = Broken(root, len(files))
    mine = _good(root, files, broken)
    if top / "validation" not in folders and split != "heldout":
        validation = hashed_validation(mine)
        mine = [file for file in mine if (file in validation) == (split == "validation")]
    if not mine:
        raise BadData(f"{root} has too few pictures for a {split} split")
    return FolderData(f"folder:{path}", split, size, law, _rows(root, mine, captions, classes), classes, broken)

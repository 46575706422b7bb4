"""Captions beside the user's pictures: `a.txt` for `a.jpg`, one `captions.jsonl`, or one `captions.csv`.

    a.txt           each line that is not empty is a caption
    captions.jsonl  {"file": "cats/a.jpg", "caption": "a cat"} on each line ("file_name" and "text" will do)
    captions.csv    a header with the columns file (or file_name) and caption (or text)

Files are named relative to the folder the captions lie in. Text is UTF-8.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.errors import BadData

_FILE, _CAPTION = ("file", "file_name"), ("caption", "text")


def inside(root: Path, path: Path) -> bool:
    """Return whether a path, links followed, lies in `root`."""
    return path.resolve().is_relative_to(root.resolve())


def sidecar(root: Path, picture: Path) -> list[str]:
    """Return the captions in the .txt beside a picture, or none."""
    path = picture.with_suffix(".txt")
    return [text for line in _text(root, path).splitlines() if (text := _clean(line))] if path.is_file() else []


def listed(root: Path) -> dict[str, list[str]]:
    """Return the captions of `captions.jsonl` and `captions.csv` by file: relative, with forward slashes.

    Raises:
        BadData: a file cannot be read as what it is, a key is missing, or a path leaves the folder; with the line.
    """
    captions: dict[str, list[str]] = {}
    for name, rows in (("captions.jsonl", _jsonl), ("captions.csv", _csv)):
        path = root / name
        if not path.is_file():
            continue
        for line, entry in rows(path, _text(root, path)):
            file, caption = (_pick(entry, names, f"{path}, line {line}") for names in (_FILE, _CAPTION))
            captions.setdefault(_relative(file, f"{path}, line {line}"), []).append(_clean(caption))
    return captions


def _clean(text: str) -> str:
    return " ".join(text.split())


def _text(root: Path, path: Path) -> str:
    if not inside(root, path):
        raise BadData(f"{path} is a link that leads out of the folder")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadData(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise BadData(f"{path} cannot be read: {error.strerror}") from error


def _jsonl(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadData(f"{path}, line {number}: this is not JSON") from error
        if not isinstance(entry, dict):
            raise BadData(f'{path}, line {number}: write {{"file": ..., "caption": ...}}')
        yield number, entry


def _csv(path: Path, text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(text.splitlines(keepends=True))
    try:
        for entry in reader:
            yield reader.line_num, entry
    except csv.Error as error:
        raise BadData(f"{path}, line {reader.line_num}: {error}") from error


def _pick(entry: Mapping[str, Any], names: tuple[str, ...], where: str) -> str:
    for name in names:
        if isinstance(entry.get(name), str):
            return entry[name]
    raise BadData(f"{where}: '{names[0]}' (or '{names[1]}') is missing or no text")


def _relative(file: str, where: str) -> str:
    path = PurePosixPath(file.strip().replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or (path.parts and path.parts[0].endswith(":")):
        raise BadData(f"{where}: '{file}' leads out of the folder; name files relative to it")
    return path.as_posix()

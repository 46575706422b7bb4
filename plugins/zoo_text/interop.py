"""The published files of tokenizers, as state dicts of ours.

A "state dict" of theirs is the bytes of each file, uint8, by the names below. `zoo import` finds which layout a
checkpoint has on the meta device: there the names decide, and nothing is read.

`openai`: github.com/openai/CLIP, clip/bpe_simple_vocab_16e6.txt.gz, merges alone; `huggingface`: vocab.json with
merges.txt; `tokenizers`: tokenizer.json; `youtokentome`: one file of numbers, see `zoo_text.yttm`; `sentencepiece`:
one binary file, T5's spiece.model.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import BadWeights
from zoo_text.configs import BYTES, PublicBpe
from zoo_text.pieces import from_json, from_lines, of_bytes
from zoo_text.readers import READERS

State = Mapping[str, Tensor]

FILES: dict[str, list[dict[str, str]]] = {
    "clip": [
        {"vocab.json": "*vocab.json", "merges.txt": "*merges.txt"},
        {"tokenizer.json": "*tokenizer.json"},
        {"bpe_simple_vocab_16e6.txt": "*bpe_simple_vocab*.txt*"},
    ],
    "mindalle": [{"vocab.json": "*vocab.json", "merges.txt": "*merges.txt"}],
    "rudalle": [{"bpe.model": "*bpe*.model"}],
    "t5": [{"spiece.model": "*piece*.model"}],
}
"""Style -> the sets of files that hold its vocabulary, the preferred first: our name -> pattern of theirs."""


def find_files(style: str, place: Path) -> dict[str, Path]:
    """Return the files of a style's vocabulary, by the names that the functions below know them by.

    Args:
        style: see `PublicBpe.style`.
        place: a folder that has them or whose folder `tokenizer` does; or one of the files, the others beside it.

    Raises:
        BadWeights: there are none, one of several is missing, or it is not clear which are meant.
    """
    named = place.is_file()
    folders = [place.parent] if named else [place, place / "tokenizer"]
    partial = ""
    for folder in folders:
        for wanted in FILES[style]:
            found = {name: sorted(x for x in folder.glob(pattern) if x.is_file()) for name, pattern in wanted.items()}
            if named:
                found = {name: [place] if place in files else files for name, files in found.items()}
                if [place] not in found.values():
                    continue
            if double := next((files for files in found.values() if len(files) > 1), None):
                raise BadWeights(f"{folder}: which file is meant, {' or '.join(x.name for x in double[:3])}?")
            if all(found.values()):
                return {name: files[0] for name, files in found.items()}
            if any(found.values()):
                partial = partial or f"{folder}: has no {' and '.join(name for name, x in found.items() if not x)}"
    raise BadWeights(partial or f"{place}: no vocabulary; {style}'s is {_said(style)}")


def _said(style: str) -> str:
    return ", or ".join(" with ".join(wanted) for wanted in FILES[style])


def from_openai(state: State, config: PublicBpe) -> dict[str, Tensor]:
    """Return our state dict of OpenAI's list of merges, of which the first `vocab_size` - 514 are CLIP's.

    Raises:
        BadWeights: the files are others, damaged, or of another size; so do the functions below.
    """

    def make(text: str) -> bytes:
        merges = from_lines(text.split("\n"))
        if len(merges) < config.vocab_size - BYTES:
            raise BadWeights(f"has {len(merges):,} merges, too few for {config.vocab_size:,} pieces")
        return of_bytes(merges[: config.vocab_size - BYTES]).dump()

    return _made(state, config, make, "bpe_simple_vocab_16e6.txt")


def from_huggingface(state: State, config: PublicBpe) -> dict[str, Tensor]:
    """Return our state dict of a vocabulary with its merges."""

    def make(vocab: str, merges: str) -> bytes:
        return from_json(_json(vocab), [list(pair) for pair in from_lines(merges.split("\n"))]).dump()

    return _made(state, config, make, "vocab.json", "merges.txt")


def from_tokenizers(state: State, config: PublicBpe) -> dict[str, Tensor]:
    """Return our state dict of one file of `tokenizers`: its pieces and merges; how it cleans text is the style's."""

    def make(text: str) -> bytes:
        data = _json(text)
        model = data.get("model") if isinstance(data, dict) else None
        if not isinstance(model, dict) or model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
            raise BadWeights("is no byte-pair tokenizer")
        added = {str(x["content"]): x["id"] for x in data.get("added_tokens") or []}
        return from_json(added | model["vocab"], model.get("merges")).dump()

    return _made(state, config, make, "tokenizer.json")


def from_youtokentome(state: State, config: PublicBpe) -> dict[str, Tensor]:
    """Return our state dict of a youtokentome model, which is kept as it is."""
    return _made(state, config, str.encode, "bpe.model")


def from_sentencepiece(state: State, config: PublicBpe) -> dict[str, Tensor]:
    """Return our state dict of a sentencepiece model, which is kept as it is."""
    return _made(state, config, bytes, "spiece.model", read=_bytes)


def _bytes(content: Tensor, name: str) -> bytes:
    return bytes(content.numpy())


def _text(content: Tensor, name: str) -> str:
    data = bytes(content.numpy())
    try:
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadWeights(f"{name} is truncated, or not text ({' '.join(str(error).split())[:100]})") from error


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise BadWeights(f"not JSON, or truncated ({error})") from error


def _made(
    state: State, config: PublicBpe, make: Callable[..., bytes], *names: str, read: Callable[[Tensor, str], Any] = _text
) -> dict[str, Tensor]:
    """Return the state dict that `make` makes of the files' texts; on the meta device, of their names alone."""
    if state.keys() != set(names):
        raise BadWeights(f"this layout is {' with '.join(names)}")
    if any(x.is_meta for x in state.values()):
        return {"vocabulary": torch.empty(0, dtype=torch.uint8, device="meta")}
    content = make(*(read(state[name], name) for name in names))
    size = READERS[config.style](content).size
    if size != config.vocab_size:
        raise BadWeights(f"the vocabulary has {size:,} pieces, and the part that reads it {config.vocab_size:,}")
    return {"vocabulary": torch.frombuffer(bytearray(content), dtype=torch.uint8)}

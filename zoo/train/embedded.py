"""When training reads embeddings of captions from a store, and which parts make them.

A stage that reads a frozen text encoder would run it on the same captions in every epoch. Their embeddings are put into
`<run>/store/` before the first step, or taken from a folder that `zoo embed` made, and batches then come with them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ConfigError
from zoo.interfaces import Batch, Dataset
from zoo.rng import Rng
from zoo.train.captions import HASHED, Distinct, chunks
from zoo.train.embeddings import Embeddings, Encode, Maker, build
from zoo.train.progress import Progress
from zoo.train.store import settings_of
from zoo.train.world import Processes, World, first, seen

log = logging.getLogger("zoo.train")

ENCODER, TOKENIZER = "text_encoder", "tokenizer"
"""Roles of the parts that make embeddings."""
WORLD = World()

_LARGEST = 2 << 30
"""Bytes; a larger store is not made unasked."""
_MOST_ROWS = 1 << 22
"""Rows of data whose captions are not even counted unasked."""
_LOOKED_AT = 256
"""Captions by which a store's size is judged."""
_COMPARED = 1 << 20
"""Captions that must be in a store that was given, before training begins."""


class Embedded:
    """Data whose batches come with their captions' embeddings; all else is the data's own."""

    def __init__(self, source: Any, embeddings: Embeddings) -> None:
        self.source, self.embeddings = source, embeddings

    def __len__(self) -> int:
        return len(self.source)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["source"], name)

    def read(self, rows: Sequence[int], rng: Rng | None = None) -> Batch:
        """Return these rows with `text` and `text_mask`, where they have captions."""
        batch = self.source.read(rows, rng)
        if batch.texts is None:
            return batch
        text, mask = self.embeddings.read(batch.texts)
        return Batch(**{**batch.filled(), "text": text, "text_mask": mask})


def reads_frozen_encoder(generator: Any, part: str) -> bool:
    """Return whether a stage reads embeddings of an encoder that it does not train."""
    return ENCODER in generator.reads(part) and ENCODER not in generator.stages[part]


def check_asked(given: Path | None, generator: Any, stages: Sequence[str], out: Path) -> None:
    """Refuse `--embeddings` for stages of which none would read them, or whose encoder is yet to be trained.

    Args:
        given: the folder; None: nothing is asked.
        generator: the system.
        stages: those the command trains.
        out: the run folder.

    Raises:
        ConfigError: so it is.
    """
    if given is None:
        return
    if not any(reads_frozen_encoder(generator, part) for part in stages):
        raise ConfigError(f"--embeddings {given}: none of {', '.join(stages)} reads a frozen {ENCODER}")
    for part in stages:
        roles = generator.stages[part]
        if ENCODER in roles and not all((out / f"{role}.safetensors").is_file() for role in roles):
            raise ConfigError(
                f"--embeddings {given}: '{part}' trains the {ENCODER} first, and its embeddings will be others: train "
                f"--part {part} alone, then `zoo embed {out}`, then the rest"
            )


def roles_of(generator: Any) -> list[str]:
    """Return the roles of a system's text encoder and tokenizer, and of what they hold."""
    return [role for role in generator.parts if role.partition(".")[0] in (ENCODER, TOKENIZER)]


def maker_of(generator: Any, prints: Mapping[str, str]) -> Maker:
    """Return what a system's text encoder and tokenizer are, `prints` being the fingerprints of their weights."""
    parts = {role: generator.parts[role] for role in roles_of(generator)}
    return Maker(
        prints={role: _print(part, prints.get(role, "")) for role, part in parts.items()},
        cards={role: str(getattr(part, "card", type(part).__name__)) for role, part in parts.items()},
        length=parts[TOKENIZER].length,
        width=parts[ENCODER].width,
    )


def _print(part: Any, weights: str) -> str:
    """Return the fingerprint of a part's weights and settings; how it is trained is none of them."""
    said = json.dumps([weights, settings_of(part)], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()


def fact_of(embeddings: Embeddings | None) -> str | None:
    """Return what a checkpoint must agree about: what made the embeddings that are read, None: they are computed.

    Kept ones are in bfloat16 and computed ones are not, so that the two are not the same training.
    """
    if embeddings is None:
        return None
    maker = embeddings.maker
    said = json.dumps([sorted(maker.prints.items()), maker.length, maker.width])
    return f"{maker.cards[ENCODER]} {hashlib.sha256(said.encode()).hexdigest()[:16]}"


def encoding(generator: Any, device: Any) -> Encode:
    """Return the function from captions to embeddings that a system's parts are; it warns of captions only once."""
    tokenizer, encoder = generator.parts[TOKENIZER], generator.parts[ENCODER]
    told: list[Any] = []

    @torch.no_grad()
    def encode(texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            ids, mask = tokenizer.encode(texts)
        if said and not told:
            told.append(said[0])
            warnings.warn(str(said[0].message), UserWarning, stacklevel=2)
        return encoder.encode(ids.to(device), mask.to(device)), mask

    return encode


def open_embeddings(
    folder: Path,
    generator: Any,
    part: str,
    dataset: Dataset,
    prints: Mapping[str, str],
    *,
    given: Path | None = None,
    samples: int,
    device: Any,
    world: Processes = WORLD,
) -> Embeddings | None:
    """Return the embeddings a stage reads, computing them where they are not there yet; None: it encodes as it goes.

    It does where a stage reads no frozen encoder, where the tokenizer is noisy in training, and, unless a store was
    `given`, where fewer samples are read than there are captions, and where they would take more than 2 GiB.

    Args:
        folder: `<run>/store`.
        generator: the system, its frozen parts ready and on `device`.
        part: name of the stage.
        dataset: whose captions.
        prints: fingerprints of the stage's frozen parts, by role.
        given: a store that `zoo embed` made.
        samples: samples the stage will read in all.
        world: the processes; the first computes for all.

    Raises:
        BadData: the store that was given is another encoder's, or lacks captions.
        ConfigError: one was given, and the tokenizer is noisy in training.
    """
    if not reads_frozen_encoder(generator, part):
        return None
    maker = maker_of(generator, prints)
    if given is not None:
        first(world, lambda: _check(given, generator.parts[TOKENIZER], maker, dataset))
        return Embeddings.open(given)
    path = first(world, lambda: _made(folder, generator, maker, part, dataset, samples, device))
    if path is None:
        return None
    return Embeddings.open(seen(Path(path) / "index.safetensors").parent)


def _check(folder: Path, tokenizer: Any, maker: Maker, dataset: Dataset) -> None:
    if _noisy(tokenizer, list(itertools.islice(dataset.texts(), _LOOKED_AT))):
        raise ConfigError(
            f"--embeddings {folder}: the {TOKENIZER} ('{maker.cards[TOKENIZER]}') reads a caption differently each "
            "time in training (bpe_dropout), and what is embedded once never changes: leave --embeddings out"
        )
    store = Embeddings.open(folder)
    store.check(maker, f"make one of these parts: zoo embed RUN --data {dataset.uri} --out FOLDER")
    for some in chunks(itertools.islice(dataset.texts(), _COMPARED), HASHED):
        store.rows(some)


def _made(
    folder: Path, generator: Any, maker: Maker, part: str, dataset: Dataset, samples: int, device: Any
) -> str | None:
    """Return the folder of the store, made if need be; None where there is to be none."""
    few = list(itertools.islice(dataset.texts(), _LOOKED_AT))
    if not few or len(dataset) > _MOST_ROWS or _noisy(generator.parts[TOKENIZER], few):
        return None
    distinct = Distinct.of(dataset.texts())
    if samples < len(distinct):
        return None
    tokens = float(generator.parts[TOKENIZER].encode(few, Rng(0, range(len(few))))[1].sum(1).float().mean())
    if 2 * maker.width * tokens * len(distinct) > _LARGEST:
        log.info("%s: embeddings of %d captions are too many to be kept unasked; they are computed as training goes "
                 "(`zoo embed` and --embeddings keep them)", part, len(distinct))  # fmt: skip
        return None
    said = json.dumps([sorted(maker.prints.items()), maker.length, distinct.digest])
    path = folder / f"text-{hashlib.sha256(said.encode()).hexdigest()[:32]}"
    if not path.exists():
        log.info("%s: embedding %d captions once", part, len(distinct))
        with Progress(f"{part}: embed", len(distinct), unit="caption") as bar:
            build(path, dataset.texts, encoding(generator, device), maker, distinct=distinct, progress=bar.advance)
    return str(path)


def _noisy(tokenizer: Any, texts: Sequence[str]) -> bool:
    """Return whether the tokenizer reads a caption differently each time in training."""
    rows = range(len(texts))
    one, two = (tokenizer.encode(texts, Rng(seed, rows))[0] for seed in (1, 2))
    return not torch.equal(one, two)

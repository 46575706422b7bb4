"""What each layer of a run's prior makes of pictures, computed once and kept.

The features of a layer are the mean over positions of what it works on (`Featured.features`; [1] section 2.3: the
output of the norm before attention). A prior that is not causal has learnt from masked codes only, and [1] masks
its input at evaluation too: several independent masks, and the classes that are told most often (`vote`).

Letters: B batch, n pictures, N codes, L layers, D width, M masks.

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from zoo.data.base import fingerprint
from zoo.errors import BadRun, BadWeights, PartMismatch
from zoo.interfaces import Batch, Cond, Featured
from zoo.probing.splits import Part
from zoo.registry import load_system
from zoo.resolution import is_run
from zoo.rng import Rng
from zoo.runs import RunFolder
from zoo.weights import load_tensors, save_tensors

MASKED = 0.15
"""Share of codes that are masked, where the prior's config has no `mask`. [1]"""
KEPT = 1 << 29
"""Bytes of features that are kept on the disk; more are computed again."""

Advance = Callable[[int], Any]
"""Called with the number of pictures done since it was last called."""


@attrs.frozen(eq=False)
class Subject:
    """A run whose prior tells features."""

    path: Path
    generator: Any
    prints: str
    """Changes with the weights."""

    @property
    def prior(self) -> Any:
        """The prior."""
        return self.generator.prior

    @property
    def masked(self) -> bool:
        """Whether its input is masked at evaluation too."""
        return not self.prior.causal

    @property
    def size(self) -> int:
        """Side of its pictures, pixels."""
        return self.generator.config.image_size


@attrs.frozen(eq=False)
class Features:
    """Features of n pictures."""

    values: Tensor
    """float32 [M,L,n,D], of the layers that were asked for."""
    labels: np.ndarray
    """int64 [n]."""

    def joined(self, places: range, mask: int = 0) -> np.ndarray:
        """Return [n,D of all] of layers side by side, by their places among those asked for."""
        return np.concatenate([self.values[mask, place].numpy() for place in places], 1)


def subject(run: str | Path, *, ready: bool = True) -> Subject:
    """Load a run whose prior tells features.

    Args:
        run: its folder.
        ready: False where the prior's own weights may be missing, since others are loaded.

    Raises:
        BadRun: there is no run there.
        PartMismatch: it has no prior, one that tells no features, or one that never learnt to do without a condition.
        NotReady: it is not trained to its end.
    """
    if not is_run(str(run)):
        raise BadRun(f"'{run}' is not a run folder (no run.toml); train one: python scripts/train.py --model NAME")
    generator = load_system(str(run))
    prior = generator.parts.get("prior")
    if prior is None or not hasattr(generator, "codebook"):
        raise PartMismatch(f"'{run}' trained a {generator.card}; a whole system of codebook and prior is needed here")
    if not isinstance(prior, Featured):
        raise PartMismatch(
            f"'{run}' is a {generator.card}, whose prior '{prior.card}' has no features(codes, cond): "
            "it says nothing of its layers"
        )
    if generator.reads_what != "nothing" and getattr(generator.prior.config, "cond_drop", 0) == 0:
        raise PartMismatch(
            f"'{run}' was trained with cond_drop = 0: its prior never learnt to read pictures without being told the "
            f"{generator.reads_what}, and features that are told are no features of pictures; train with cond_drop > 0"
        )
    generator.need([*generator.reads("prior"), *(["prior"] if ready else [])])
    folder = RunFolder(run)
    prints = [folder.fingerprint(role) for role in ("codebook", "prior") if folder.finished(role)]
    return Subject(Path(run), generator.eval(), fingerprint(*prints))


def null(generator: Any, rows: int) -> Cond:
    """Return the condition that says nothing: a prior that reads labels must not be told them."""
    if generator.reads_what == "nothing":
        return Cond()
    return Cond(drop=torch.ones(rows, dtype=torch.bool, device=generator.device))


def codes_of(generator: Any, batch: Batch) -> Tensor:
    """Return the codes [B,N] of a batch of pictures."""
    assert batch.images is not None
    with torch.no_grad():
        return generator.codebook.encode(batch.images.to(generator.device))


def masked_codes(prior: Any, codes: Tensor, rng: Rng) -> Tensor:
    """Return the codes [B,N] with -1 where this draw masks them."""
    share = getattr(prior.config, "mask", MASKED)
    u = rng.fork("mask").uniform(codes.shape[1], device=codes.device)
    return codes.masked_fill(u < share, -1)


def seen(subject: Subject, codes: Tensor, rows: np.ndarray, *, mask: int, seed: int) -> Tensor:
    """Return codes [B,N] as the prior is shown them: masked where it is not causal; mask `mask` of these rows."""
    return masked_codes(subject.prior, codes, Rng(seed, rows.tolist(), step=mask)) if subject.masked else codes


@torch.no_grad()
def shape(subject: Subject) -> tuple[int, int]:
    """Return how many layers the prior tells of, and the width of the last, from one picture of the first code."""
    codes = torch.zeros(1, subject.prior.length, dtype=torch.int64, device=subject.generator.device)
    told = subject.prior.features(codes, null(subject.generator, 1))
    return len(told), told[-1].shape[-1]


@torch.no_grad()
def extract(
    subject: Subject, part: Part, layers: Sequence[int], *, masks: int = 1, seed: int = 0, chunk: int = 64,
    advance: Advance = lambda done: None,
) -> Features:  # fmt: skip
    """Return the features of some pictures, `chunk` at a time.

    Args:
        subject: the run.
        part: the pictures.
        layers: which of the prior's; all of a large one take much memory.
        masks: independent masks of each picture; one for a causal prior, which has none.
        seed: decides the masks.
        chunk: pictures at a time.
        advance: told of every chunk.

    Raises:
        BadData: a row has no label.
    """
    masks = masks if subject.masked else 1
    values, labels = torch.empty(0), np.empty(len(part), dtype=np.int64)
    for start in range(0, len(part), chunk):
        rows = part.rows[start : start + chunk]
        batch = part.data.read(rows.tolist())
        assert batch.labels is not None
        labels[start : start + chunk] = batch.labels.numpy()
        codes = codes_of(subject.generator, batch)
        for mask in range(masks):
            shown = seen(subject, codes, rows, mask=mask, seed=seed)
            told = subject.prior.features(shown, null(subject.generator, len(rows)))
            wanted = torch.stack([told[layer].float().cpu() for layer in layers])
            if not len(values):
                values = torch.empty(masks, len(layers), len(part), wanted.shape[-1])
            values[mask, :, start : start + chunk] = wanted
        advance(len(rows))
    return Features(values, labels)


def kept(
    subject: Subject, part: Part, layers: Sequence[int], folder: Path | None, *, masks: int = 1, seed: int = 0,
    chunk: int = 64, advance: Advance = lambda done: None,
) -> Features:  # fmt: skip
    """Return what `extract` does, from `folder` where it is there; written there where it is small enough."""
    masks, seed = (masks, seed) if subject.masked else (1, 0)
    pictures = part.data.fingerprint, part.rows.tobytes()
    key = fingerprint("features 1", subject.prints, tuple(layers), pictures, masks, seed)
    path = None if folder is None else folder / f"features-{key}.safetensors"
    if path is not None and path.is_file():
        try:
            found, _ = load_tensors(path)
            advance(len(part))
            return Features(found["values"], found["labels"].numpy())
        except (BadWeights, KeyError):
            pass  # damaged: it is computed and written again
    made = extract(subject, part, layers, masks=masks, seed=seed, chunk=chunk, advance=advance)
    if path is not None and made.values.nbytes <= KEPT:
        save_tensors(path, {"values": made.values, "labels": torch.from_numpy(made.labels)}, {"run": str(subject.path)})
    return made


def vote(told: np.ndarray, rows: np.ndarray, seed: int, classes: int) -> np.ndarray:
    """Return the class [n] that most of the M rows of `told` [M,n] name; ties are drawn, by the picture's row. [1]"""
    counts = torch.nn.functional.one_hot(torch.from_numpy(told), classes).sum(0)
    chance = Rng(seed, rows.tolist()).fork("ties").uniform(classes)
    return (counts + chance).argmax(1).numpy()  # chance lies in (0, 1): it decides between equals only

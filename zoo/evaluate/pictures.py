"""What pictures are worth: whether they obey their captions, and how far they are from real ones.

As [1] compared pictures: after the reranker chose among more and more candidates (its figure 6), and after real and
generated pictures were blurred alike (its figure 9).

Distances are to real pictures of other rows than the captions': to those of the same captions generated pictures would
be nearer than any independent sample, for having the same things in the same places. Beside each stands the distance
of the captions' own pictures, which is what a perfect generator would have.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from zoo.evaluate.blur import blur
from zoo.evaluate.features import Feature
from zoo.evaluate.figures import batches
from zoo.evaluate.frechet import frechet
from zoo.evaluate.judge import Judge
from zoo.interfaces import Batch, Dataset

SHOWN = 32
"""Pictures kept for a grid."""

Key = tuple[str, float]
"""A set of pictures and the radius it is blurred with: "best_of_8"; "real", the captions' own; "reference"."""


@attrs.frozen(kw_only=True, eq=False)
class Ask:
    """What is asked of a split's pictures."""

    captions: int
    """Pictures that are generated, for the first captions (labels) of the split."""
    counts: tuple[int, ...]
    """Candidates that the reranker chooses among; 1 is a single sample."""
    radii: tuple[float, ...]
    """Blur radii in pixels."""
    features: Sequence[Feature]
    judge: Judge | None
    reference: int
    """Real pictures that distances are taken to, at most."""
    seed: int
    chunk: int
    """Candidates drawn at a time."""
    how: Mapping[str, Any] = attrs.field(factory=dict)
    """Settings of `best_of` beside the system's own."""
    shown: Callable[[Tensor], Tensor] | None = None
    """What becomes of pictures, generated and real alike, before they are looked at; None: nothing."""


@attrs.frozen(eq=False)
class Seen:
    """What was seen of a split's pictures."""

    generated: int
    """Pictures generated."""
    reference: int
    """Real pictures that distances are taken to."""
    apart: bool
    """Whether they are of other rows than the captions; of a small split they are the captions' own."""
    verdicts: dict[Key, np.ndarray]
    """Whether the picture of each caption obeys it, bool [generated]; empty where nobody can judge."""
    distances: dict[Key, dict[str, float]]
    """Fréchet distance to the reference, blurred alike, by feature."""
    images: Tensor
    """[SHOWN,3,H,W], best of the most candidates."""
    captions: tuple[str, ...]

    @property
    def obeyed(self) -> dict[Key, float]:
        """Share of pictures that obey their captions; empty where nobody can judge."""
        return {key: float(good.mean()) for key, good in self.verdicts.items()}


def prompts_of(generator: Any, batch: Batch) -> list[Any] | None:
    """Return what the system is asked for pictures like these; None where the data does not say."""
    if generator.asks == "caption":
        return None if batch.texts is None else list(batch.texts)
    if generator.asks == "label":
        return None if batch.labels is None else batch.labels.tolist()
    return [None] * len(batch)


class _Tally:
    """Sums over the pictures of each set."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.verdicts: dict[Key, list[np.ndarray]] = defaultdict(list)
        self.features: dict[tuple[Key, str], list[Tensor]] = defaultdict(list)

    def add(self, name: str, radii: Sequence[float], images: Tensor, texts: Sequence[str] | None) -> None:
        """Take in pictures [B,3,H,W] of a set, blurred with each radius."""
        images = images if self.ask.shown is None else self.ask.shown(images)
        for radius in radii:
            blurred = blur(images, radius)
            for feature in self.ask.features:
                self.features[(name, radius), feature.name].append(feature.of(blurred).double().cpu())
            if self.ask.judge is not None and texts is not None:
                self.verdicts[name, radius].append(self.ask.judge(blurred.cpu(), texts))

    def join(self, other: _Tally) -> None:
        """Take in another's sets."""
        self.verdicts |= other.verdicts
        self.features |= other.features

    def distances(self, reference: str) -> dict[Key, dict[str, float]]:
        """Return the distance of each set from one of the sets; none of sets of one picture."""
        every = {key: torch.cat(rows) for key, rows in self.features.items()}
        found: dict[Key, dict[str, float]] = defaultdict(dict)
        for (key, feature), rows in every.items():
            to = every[(reference, key[1]), feature]
            if key[0] != reference and min(len(rows), len(to)) > 1:
                found[key][feature] = frechet(rows, to)
        return dict(found)


@attrs.frozen(eq=False)
class Real:
    """What was seen of a split's own pictures."""

    tally: _Tally
    reference: int
    """Pictures that distances are taken to."""
    apart: bool
    """Whether they are of other rows than the captions."""


@torch.no_grad()
def look_at_real(dataset: Dataset, ask: Ask, device: torch.device) -> Real:
    """Look at the real pictures of the first captions of a split, and at those that distances are taken to."""
    tally, count = _Tally(ask), min(ask.captions, len(dataset))
    for _, batch in batches(dataset, count):
        assert batch.images is not None
        tally.add("real", _radii(ask), batch.images.to(device), batch.texts)
    others = min(ask.reference, len(dataset) - count) if ask.features else 0
    apart = others >= count
    for _, batch in batches(dataset, others, start=count) if apart else ():
        assert batch.images is not None
        tally.add("reference", _radii(ask), batch.images.to(device), None)
    return Real(tally, others if apart else count, apart)


@torch.no_grad()
def look(
    generator: Any, dataset: Dataset, ask: Ask, progress: Callable[[int, int], None] | None = None,
    real: Real | None = None,
) -> Seen:  # fmt: skip
    """Generate pictures for the first rows of a split, and compare them with the split's own.

    Pictures are drawn, judged and forgotten by the hundred: what is kept of each are its features.

    Args:
        generator: a system with `best_of`.
        dataset: the split.
        ask: what is asked.
        progress: called with (units of work done, units in all).
        real: what `look_at_real` saw for the same question, asked otherwise at most in `how`; None: it is looked at.
    """
    tally, count, most = _Tally(ask), min(ask.captions, len(dataset)), max(ask.counts)
    shown: list[Tensor] = []
    captions: list[str] = []
    for rows, batch in batches(dataset, count):
        prompts = prompts_of(generator, batch)
        assert prompts is not None
        how = {"start": rows.start, "chunk": ask.chunk, "progress": _part(progress, rows, count), **ask.how}
        best = generator.best_of(prompts, ask.counts, ask.seed, **how)
        for k, images in best.items():
            tally.add(f"best_of_{k}", _radii(ask) if k == most else (0.0,), images, batch.texts)
        if len(captions) < SHOWN:
            shown.append(best[most].cpu())
            captions += ["" if p is None else str(p) for p in prompts]
    real = real or look_at_real(dataset, ask, generator.device)
    tally.join(real.tally)
    return Seen(
        generated=count,
        reference=real.reference,
        apart=real.apart,
        verdicts={key: np.concatenate(found) for key, found in tally.verdicts.items()},
        distances=tally.distances("reference" if real.apart else "real"),
        images=torch.cat(shown)[:SHOWN],
        captions=tuple(captions[:SHOWN]),
    )


def _radii(ask: Ask) -> list[float]:
    """Return every radius, and 0 last."""
    return [r for r in ask.radii if r] + [0.0]


def _part(progress: Callable[[int, int], None] | None, rows: range, count: int) -> Callable[[int, int], None] | None:
    """Return what tells `progress` of these rows as a part of `count`."""
    if progress is None:
        return None

    def told(done: int, total: int) -> None:
        each = total // len(rows)
        progress(rows.start * each + done, count * each)

    return told

"""One report of a run: what `zoo evaluate` and the quickstart print and write."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from zoo.errors import BadData
from zoo.evaluate import plots
from zoo.evaluate.features import USUAL, check_names, features_of
from zoo.evaluate.figures import codebook_figures, loss_figures
from zoo.evaluate.judge import judge_of
from zoo.evaluate.kinds import by_kind, table
from zoo.evaluate.pictures import Ask, Seen, look, prompts_of
from zoo.files import atomic_text
from zoo.interfaces import Dataset
from zoo.registry import open_dataset

Report = dict[str, Any]


def evaluate_run(
    generator: Any,
    data: str,
    *,
    splits: Sequence[str] | None = None,
    captions: int = 256,
    candidates: Sequence[int] = (1, 8),
    blur: Sequence[float] = (),
    distances: Sequence[str] = USUAL,
    pictures: int = 2048,
    seed: int = 0,
    chunk: int = 128,
    bar: Callable[[int, str, str], Any],
    grid: Path | None = None,
) -> Report:
    """Return every figure that the system's ready parts allow.

    Args:
        generator: a whole system, or a system of one part.
        data: dataset uri; `captions` rows of each of `splits` are asked for.
        splits: None: validation, and heldout where the data has it.
        captions: captions a split.
        candidates: how many candidates the reranker chooses among; 1 is a single sample. They are drawn once.
        blur: radii in pixels with which real and generated pictures are blurred before they are compared.
        distances: features in which pictures are compared; see `zoo.evaluate.features`.
        pictures: validation pictures the codebook is judged on, and real pictures distances are taken to, at most.
        seed: seed of every sample.
        chunk: candidates drawn at a time.
        bar: makes a progress bar of (total, what, unit).
        grid: where the reranked pictures of each split are drawn, with the split's name added, and beside them
            "<stem>-candidates" and "<stem>-blur", the curves; None: nowhere.

    Raises:
        UnknownName, NotInstalled: one of `distances` cannot be; before anything is computed.
    """
    check_names(distances)
    ready = generator.ready
    report: Report = {"data": data, "seed": seed}
    size = image_size(generator)
    validation = open_dataset(data, split="validation", size=size)
    if ready.get("codebook"):
        found = codebook_figures(generator.parts["codebook"], validation, pictures, judge_of(data))
        report["codebook"] = found
    for part in generator.stages:
        if part != "codebook" and ready[part] and all(ready[r] for r in generator.reads(part)):
            report[part] = loss_figures(generator, part, validation, min(pictures, 512), seed)
    if not hasattr(generator, "best_of") or not all(ready[r] for r in generator.used()):
        return report
    captioned = generator.asks == "caption"
    ask = Ask(
        captions=captions,
        counts=tuple(sorted({k for k in candidates if k == 1 or (ready.get("reranker") and captioned)} or {1})),
        radii=tuple(blur),
        features=features_of(generator, distances),
        judge=judge_of(data, generator.asks),
        reference=max(pictures, captions),
        seed=seed,
        chunk=chunk,
    )
    for split, source in _sources(data, splits, size):
        if prompts_of(generator, source.read(range(1))) is None:
            continue  # a prior that reads captions, and data that have none
        units, unit = generator.work
        work = min(captions, len(source)) * max(ask.counts) * units
        with bar(work, f"{split}, {max(ask.counts)} each", unit) as progress:
            seen = look(generator, source, ask, partial(_advance, progress))
        _enter(report, split, ask, seen, source)
        if grid is not None:
            _draw(grid.with_name(f"{grid.stem}-{split}{grid.suffix}"), seen, f"best_of_{max(ask.counts)}")
    if grid is not None and report.get("splits") and ("accuracy" in report or "distance" in report):
        if len(ask.counts) > 1:
            plots.best_of(report, grid.with_name(f"{grid.stem}-candidates{grid.suffix}"))
        if "blur" in report:
            plots.blurred(report, grid.with_name(f"{grid.stem}-blur{grid.suffix}"))
    return report


def _sources(data: str, splits: Sequence[str] | None, size: int) -> Iterator[tuple[str, Dataset]]:
    for split in splits or ("validation", "heldout"):
        try:
            source = open_dataset(data, split=split, size=size)
        except BadData:
            if splits is None and split == "heldout":
                continue  # pictures of one's own need not have any
            raise
        if len(source):
            yield split, source


def _enter(report: Report, split: str, ask: Ask, seen: Seen, source: Dataset) -> None:
    """Write what was seen of a split into the report."""
    report.setdefault("splits", []).append(split)
    sets = [f"best_of_{k}" for k in ask.counts]
    most = sets[-1]
    if seen.obeyed:
        said = report.setdefault("accuracy", {"captions": {}})
        said["captions"][split] = seen.generated
        said[split] = {name: seen.obeyed[name, 0.0] for name in sets}
        texts = list(islice(source.texts(), seen.generated))
        counts = {name: by_kind(texts, seen.verdicts[name, 0.0].tolist()) for name in sets}
        report.setdefault("kinds", {})[split] = counts
    if seen.distances:
        said = report.setdefault("distance", {"features": {f.name: f.about for f in ask.features}, "pictures": {}})
        numbers = {"generated": seen.generated, "real": seen.reference, "other_rows": seen.apart}
        said["pictures"][split] = numbers
        kept = [name for name in (*sets, "real") if (name, 0.0) in seen.distances]
        said[split] = {f.name: {name: seen.distances[name, 0.0][f.name] for name in kept} for f in ask.features}
    if ask.radii:
        rows: dict[str, dict[str, list[float]]] = {}
        if seen.obeyed:
            kinds = (("generated", most), ("real", "real"))
            rows["accuracy"] = {kind: [seen.obeyed[name, r] for r in ask.radii] for kind, name in kinds}
        for f in ask.features if seen.distances else ():
            rows[f.name] = {
                kind: [seen.distances[name, r][f.name] for r in ask.radii]
                for kind, name in (("generated", most), ("real", "real"))
                if (name, 0.0) in seen.distances
            }
        report.setdefault("blur", {"radii": list(ask.radii), "best_of": max(ask.counts)})[split] = rows


def _advance(progress: Any, done: int, total: int) -> None:
    progress.update(done - progress.n)


def image_size(generator: Any) -> int:
    """Return the side of a system's pictures in pixels."""
    return generator.config.image_size


def _draw(path: Path, seen: Seen, best: str) -> None:
    from zoo.data.images import save_grid

    marks = list(seen.captions)
    if seen.verdicts:
        good = seen.verdicts[best, 0.0][: len(marks)].tolist()
        marks = [text if ok else f"MISSED: {text}" for text, ok in zip(marks, good, strict=True)]
    save_grid(path, seen.images, marks, columns=8)


def write(report: Report, path: Path) -> None:
    """Write a report as JSON."""
    atomic_text(path, json.dumps(report, indent=1) + "\n")


def lines(report: Report) -> list[str]:
    """Return a report as lines to print."""
    text = []
    if "codebook" in report:
        c = report["codebook"]
        obeyed = f", reconstructions obey {c['obeyed']:.1%}" if "obeyed" in c else ""
        text.append(
            f"codebook   PSNR {c['psnr']:.1f} dB, {c['used']} of {c['vocab_size']} codes used, "
            f"perplexity {c['perplexity']:.1f}{obeyed}"
        )
    for part, found in report.items():
        if isinstance(found, dict) and "loss" in found:
            terms = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
            text.append(f"{part:<10} {terms}")
    for split in report.get("splits", ()):
        text += list(_split_lines(report, split))
    return text


def _split_lines(report: Report, split: str) -> Iterator[str]:
    accuracy, distance, blur = (report.get(name, {}) for name in ("accuracy", "distance", "blur"))
    if split in accuracy:
        shares = ", ".join(f"{k.replace('_', ' ')}: {v:.1%}" for k, v in accuracy[split].items())
        yield f"{split:<10} caption accuracy on {accuracy['captions'][split]} captions, {shares}"
    for name, kinds in list(report.get("kinds", {}).get(split, {}).items())[-1:]:  # of the most candidates
        yield from (f"{split:<10} {line}" for line in table(kinds, f"{name.replace('_', ' ')}, obeyed/asked"))
    for name, values in distance.get(split, {}).items():
        n = distance["pictures"][split]
        which = "others" if n["other_rows"] else "those of the captions"
        found = {k.replace("_", " ").replace("real", "real in their place"): v for k, v in values.items()}
        text = ", ".join(f"{k}: {v:.4g}" for k, v in found.items())
        yield (
            f"{split:<10} Fréchet distance of {n['generated']} pictures to {n['real']} real ones ({which}), "
            f"{distance['features'][name]}, {text}"
        )
    for name, kinds in blur.get(split, {}).items():
        what = "caption accuracy" if name == "accuracy" else f"Fréchet distance ({name})"
        for kind, row in kinds.items():
            form = "{:.1%}" if name == "accuracy" else "{:.4g}"
            text = ", ".join(f"{r:g} px: {form.format(v)}" for r, v in zip(blur["radii"], row, strict=True))
            k = blur["best_of"]
            who = "real" if kind == "real" else f"best of {k}" if k > 1 else "single samples"
            yield f"{split:<10} blurred, {what}, {who}: {text}"

"""One report of a run: what `zoo evaluate` and the quickstart print and write."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zoo.evaluate.figures import caption_figures, codebook_figures, loss_figures
from zoo.evaluate.judge import judge_of
from zoo.files import atomic_text
from zoo.registry import open_dataset

Report = dict[str, Any]


def evaluate_run(
    generator: Any,
    data: str,
    *,
    splits: Sequence[str] = ("validation", "heldout"),
    captions: int = 256,
    candidates: Sequence[int] = (1, 8),
    pictures: int = 2048,
    seed: int = 0,
    bar: Callable[[int, str, str], Any],
    grid: Path | None = None,
) -> Report:
    """Return every figure that the system's ready parts allow.

    Args:
        generator: a whole system, or a system of one part.
        data: dataset uri; `captions` rows of each of `splits` are asked for, with 1 and more `candidates`.
        captions: captions a split.
        candidates: how many candidates the reranker chooses among; 1 is a single sample.
        pictures: validation pictures the codebook is judged on.
        seed: seed of every sample.
        bar: makes a progress bar of (total, what, unit).
        grid: where the reranked pictures of each split are drawn, with the split's name added; None: nowhere.
    """
    judge, ready = judge_of(data), generator.ready
    report: Report = {"data": data, "seed": seed}
    validation = open_dataset(data, split="validation", size=image_size(generator))
    if ready.get("codebook"):
        report["codebook"] = codebook_figures(generator.parts["codebook"], validation, pictures, judge)
    for part in generator.stages:
        if part != "codebook" and ready[part] and all(ready[r] for r in generator.reads(part)):
            report[part] = loss_figures(generator, part, validation, min(pictures, 512), seed)
    if judge is None or not ready.get("prior"):
        return report
    usable = [k for k in candidates if k == 1 or ready.get("reranker")]
    report["accuracy"] = {"captions": captions}
    for split in splits:
        source = open_dataset(data, split=split, size=image_size(generator))
        asked = source.read(range(min(captions, len(source)))).texts or ()
        for k in usable:
            with bar(len(asked) * k, f"{split}, best of {k}", "img") as progress:
                advance = partial(_advance, progress)
                share, images = caption_figures(generator, asked, judge, candidates=k, seed=seed, progress=advance)
            report["accuracy"].setdefault(split, {})[f"best_of_{k}"] = share
        if grid is not None and asked:
            _draw(grid.with_name(f"{grid.stem}-{split}{grid.suffix}"), images, asked, judge)
    return report


def _advance(progress: Any, done: int, total: int) -> None:
    progress.update(done - progress.n)


def image_size(generator: Any) -> int:
    """Return the side of a system's pictures in pixels."""
    return generator.config.image_size


def _draw(path: Path, images: Any, captions: Sequence[str], judge: Any) -> None:
    from zoo.data.images import save_grid

    shown = 32
    good = judge(images[:shown], captions[:shown])
    marks = [text if ok else f"MISSED: {text}" for text, ok in zip(captions[:shown], good.tolist(), strict=True)]
    save_grid(path, images[:shown], marks, columns=8)


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
    for part in ("prior", "reranker"):
        if part in report:
            terms = ", ".join(f"{name} {value:.4f}" for name, value in report[part].items())
            text.append(f"{part:<10} {terms}")
    accuracy = report.get("accuracy", {})
    for split, figures in accuracy.items():
        if isinstance(figures, dict):
            shares = ", ".join(f"{k.replace('_', ' ')}: {v:.1%}" for k, v in figures.items())
            text.append(f"{split:<10} caption accuracy on {accuracy['captions']} captions, {shares}")
    return text

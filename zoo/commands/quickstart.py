"""`zoo quickstart`: train DALL-E small on the embedded pictures, judge it, draw a grid."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import click

PROMPTS = (
    "a red circle above a blue square",
    "a small yellow cross at the top left",
    "a purple triangle left of a green circle",  # purple triangles are never seen in training
    "a large orange circle at the bottom right",  # nor are orange circles
)


@click.command()
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default=Path("runs/quickstart"), show_default=True
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides data order, weights and samples.")
@click.option("--model", default="dalle", show_default=True, help="A system to train on `shapes`.")
def quickstart(out: Path, seed: int, model: str) -> None:
    """Train DALL-E small (codebook, prior, reranker) on the embedded data, then judge and sample it.

    Takes minutes on two CPU cores and no network. Interrupt it and start it again: it resumes. A finished run is
    judged again and drawn again.
    """
    from zoo.data.images import save_grid
    from zoo.evaluate.report import evaluate_run, lines, write
    from zoo.front import bar
    from zoo.registry import load_system
    from zoo.train.options import TrainOptions
    from zoo.train.run import run

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    began = time.monotonic()
    run(TrainOptions(model=model, out=out, seed=seed, data="shapes", resume=(out / "run.toml").exists()))
    trained = time.monotonic()
    generator = load_system(str(out))
    report = evaluate_run(generator, "shapes", bar=bar, grid=out / "samples" / "evaluation.png")
    judged = time.monotonic()
    images = generator.generate(list(PROMPTS), images_per_prompt=8, rerank=32, seed=seed)
    grid = out / "samples" / "quickstart.png"
    save_grid(grid, images, [p for p in PROMPTS for _ in range(8)], columns=8)
    report["seconds"] = {"train": trained - began, "evaluate": judged - trained, "total": time.monotonic() - began}
    write(report, out / "evaluation.json")
    for line in lines(report):
        click.echo(line)
    click.echo(
        f"{'minutes':<10} {report['seconds']['total'] / 60:.1f} ({report['seconds']['train'] / 60:.1f} training)"
    )
    click.echo(f"{'pictures':<10} {grid}")
    click.echo(f'{"try":<10} zoo sample {out} "a red circle above a blue square" -n 8 --rerank 64 --out grid.png')

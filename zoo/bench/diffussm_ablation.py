"""DiffuSSM's ablations in small, and DiT of as many parameters: label-conditioned, in one latent, for as many updates.

What the paper compares by curves at 400 000 updates: shortening by M = 1, 2, 4, one direction for two, patches in the
place of shortening, and U-ViT's long skips. Losses are of validation pictures at random noise levels; accuracy is the
share of pictures of the right colour and shape, one guided sample each.

    python -m zoo.bench.diffussm_ablation --work runs/ablation

A training whose folder is in `--work` and done is not made again; one that was stopped goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from zoo import front, registry
from zoo.runs import RunFolder
from zoo.train.metrics import read_rows

DATA = "shapes:objects=1,n=32768"
CASES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "M = 2": ("diffussm-class", ()),
    "M = 1": ("diffussm-class", ("base.shortening=1",)),
    "M = 4": ("diffussm-class", ("base.shortening=4",)),
    "one direction": ("diffussm-class", ("base.directions=forward",)),
    "patches of 2, M = 1": ("diffussm-class", ("base.patch=2", "base.shortening=1")),
    "long skips": ("diffussm-class", ("base.skips=long",)),
    "DiT": ("dit-class", ()),
    "DiT, patches of 2": ("dit-class", ("base.patch=2",)),
}
"""What is said of a training -> its card, and what is changed."""


def folder_of(work: Path, name: str) -> Path:
    """Return the run folder of a case."""
    return work / name.lower().replace(" = ", "").replace(",", "").replace(" ", "-")


def trained(work: Path, name: str, steps: int | None, latent: Path) -> Path:
    """Train a case's denoiser in the latent of another run, and return its folder."""
    from zoo.train.options import TrainOptions
    from zoo.train.run import run

    card, changes = CASES[name]
    out = folder_of(work, name)
    said = (f"latent={latent}", *changes)
    resume = (out / "run.toml").exists()
    run(TrainOptions(model=card, part="base", data=DATA, out=out, set=said, steps=steps, resume=resume, sample_every=0))
    return out


def latent_of(work: Path) -> Path:
    """Train the latent that all cases share, by the first's card, and return its run folder."""
    from zoo.train.options import TrainOptions
    from zoo.train.run import run

    out, (card, _) = work / "latent", next(iter(CASES.values()))
    run(TrainOptions(model=card, part="latent", data=DATA, out=out, resume=(out / "run.toml").exists()))
    return out


def judged(out: Path, captions: int) -> dict[str, Any]:
    """Return what a trained run is worth; kept in its folder until it is another run, or asked of other pictures."""
    from zoo.evaluate.report import evaluate_run, write

    kept, asked = out / "evaluation.json", {"captions": captions, "part": RunFolder(out).fingerprint("base")}
    if not kept.exists() or json.loads(kept.read_text(encoding="utf-8")).get("asked") != asked:
        system = registry.load_system(str(out))
        # Combinations out of training are labels without a vector of their own.
        report = evaluate_run(system, DATA, splits=["validation"], captions=captions, candidates=(1,), bar=front.bar)
        report["params"] = sum(p.numel() for p in system.parts["base"].parameters())
        seconds = sorted(row["seconds"] for row in read_rows(out / "metrics.jsonl") if row["part"] == "base")
        report |= {"seconds": seconds[len(seconds) // 2], "asked": asked}
        write(report, kept)
    found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def line(name: str, report: Mapping[str, Any]) -> str:
    """Return a row of the table."""
    loss, ms, share = report["base"]["loss"], 1000 * report["seconds"], report["accuracy"]["validation"]["best_of_1"]
    return f"| {name} | {report['params']:,} | {ms:.0f} ms | {loss:.4f} | {share:.1%} |"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the trainings."
)
@click.option("--steps", type=click.IntRange(1), help="Updates of each; the card's if not given.")
@click.option("--captions", type=click.IntRange(1), default=256, show_default=True, help="Pictures judged.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads.")
@click.argument("names", nargs=-1, metavar="[CASE]...")
def ablation(work: Path, steps: int | None, captions: int, threads: int, names: tuple[str, ...]) -> None:
    """Train the CASEs (all if none is named), and print a table."""
    import torch

    torch.set_num_threads(threads)
    latent = latent_of(work)
    click.echo("| | parameters | an update | validation loss | right |\n|---|---|---|---|---|")
    for name in names or CASES:
        out = trained(work, name, steps, latent)
        click.echo(line(name, judged(out, captions)))


if __name__ == "__main__":
    sys.exit(front.run(ablation, "diffussm_ablation"))

"""`zoo evaluate`: the figures of a run, printed and written into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from zoo.commands.lists import amounts, whole_numbers
from zoo.errors import BadRun, ConfigError
from zoo.registry import load_system
from zoo.resolution import is_run


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--data", help="Dataset; what the run was trained on if not given.")
@click.option("--split", "splits", help="Splits, by comma. Default: validation, and heldout where the data has it.")
@click.option("--captions", type=click.IntRange(1), default=256, show_default=True, help="Captions a split.")
@click.option("--candidates", default="1,8", show_default=True, help="Candidates the reranker chooses among.")
@click.option("--blur", help="Radii in pixels, such as 0,1,2,4,8: compare generated and real pictures blurred alike.")
@click.option("--distances", default="pixels,reranker", show_default=True, help="Features of distances; inception too.")
@click.option("--chunk", type=click.IntRange(1), default=128, show_default=True, help="Candidates drawn at a time.")
@click.option("--pictures", type=click.IntRange(1), default=2048, show_default=True, help="For the codebook.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--checkpoints", metavar="PART", help="Judge every checkpoint kept of a stage, by loss and single samples alone."
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def evaluate(
    run: str, data: str | None, splits: str | None, captions: int, candidates: str, blur: str | None, distances: str,
    chunk: int, pictures: int, seed: int, checkpoints: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Judge the run folder RUN; writes evaluation.json (--checkpoints: over-time.json), grids and curves into it.

    \b
    zoo evaluate runs/dalle --candidates 1,8,32,128 --blur 0,1,2,4,8
    zoo evaluate runs/diffussm --checkpoints base       over the pictures seen; train with --keep 12

    A codebook is judged on reconstructions and usage, a prior on likelihood, and a whole system on how far its pictures
    are from real ones and, where the data allows such a check (shapes), on whether they obey their captions, also by
    kind of caption. Several --candidates make a curve over the number that the reranker chooses among, several radii
    one over blur.
    """
    from zoo.evaluate.features import check_names
    from zoo.evaluate.report import evaluate_run, lines, write
    from zoo.front import bar
    from zoo.runs import RunFolder

    if not is_run(run):
        raise BadRun(f"'{run}' is not a run folder (no run.toml); train one: python scripts/train.py --model dalle")
    folder = RunFolder(run)
    among = splits.split(",") if splits else None
    if checkpoints is not None:
        _refuse_idle("candidates", "blur", "distances", "pictures")
        _over_time(run, checkpoints, data or folder.data["data"], as_json,
                   splits=among, captions=captions, seed=seed, chunk=chunk)  # fmt: skip
        return
    counts = whole_numbers(candidates, "--candidates", "1,8", 1)
    blurs = amounts(blur, "--blur", "0,1,2,4,8") if blur else ()
    features = distances.split(",") if distances else []
    check_names(features)
    report = evaluate_run(
        load_system(run),
        data or folder.data["data"],
        splits=among,
        captions=captions,
        candidates=counts,
        blur=blurs,
        distances=features,
        chunk=chunk,
        pictures=pictures,
        seed=seed,
        bar=bar,
        grid=Path(run) / "samples" / "evaluation.png",
    )
    write(report, Path(run) / "evaluation.json")
    click.echo(json.dumps(report, indent=1) if as_json else "\n".join(lines(report)))


def _refuse_idle(*names: str) -> None:
    """Refuse options of the command that --checkpoints would not heed."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise ConfigError(f"--checkpoints judges by loss and single samples alone: leave out --{name}")


def _over_time(run: str, part: str, data: str, as_json: bool, **how: Any) -> None:
    """Print and draw what the run's checkpoints are worth; writes over-time.json and a picture into it."""
    from zoo.evaluate.over_time import draw, lines, over_time
    from zoo.evaluate.report import write
    from zoo.front import bar

    report = over_time(load_system(run), Path(run), part, data, bar=bar, **how)
    write(report, Path(run) / "over-time.json")
    draw(report, Path(run) / "over-time.png")
    click.echo(json.dumps(report, indent=1) if as_json else "\n".join([*lines(report), f"{run}/over-time.png"]))

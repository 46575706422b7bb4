"""`zoo evaluate`: the figures of a run, printed and written into it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zoo.errors import BadRun, ConfigError
from zoo.registry import load_system
from zoo.resolution import is_run


def numbers(text: str, what: str) -> tuple[int, ...]:
    """Return "1,8" as (1, 8)."""
    try:
        found = tuple(int(item) for item in text.split(","))
    except ValueError:
        raise ConfigError(f"{what}: expected numbers such as 1,8, got '{text}'") from None
    if min(found) < 1:
        raise ConfigError(f"{what}: numbers start at 1, got '{text}'")
    return found


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--data", help="Dataset; what the run was trained on if not given.")
@click.option("--split", "splits", default="validation,heldout", show_default=True, help="Splits, by comma.")
@click.option("--captions", type=click.IntRange(1), default=256, show_default=True, help="Captions a split.")
@click.option("--candidates", default="1,8", show_default=True, help="Candidates the reranker chooses among.")
@click.option("--pictures", type=click.IntRange(1), default=2048, show_default=True, help="For the codebook.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def evaluate(
    run: str, data: str | None, splits: str, captions: int, candidates: str, pictures: int, seed: int, as_json: bool
) -> None:
    """Judge the run folder RUN; writes evaluation.json and captioned grids into it.

    A codebook is judged on reconstructions and usage, a prior on likelihood, and a whole system on whether pictures
    obey their captions where the data allows such a check (shapes).
    """
    from zoo.evaluate.report import evaluate_run, lines, write
    from zoo.front import bar
    from zoo.runs import RunFolder

    if not is_run(run):
        raise BadRun(f"'{run}' is not a run folder (no run.toml); train one: python scripts/train.py --model dalle")
    folder = RunFolder(run)
    report = evaluate_run(
        load_system(run),
        data or folder.data["data"],
        splits=splits.split(","),
        captions=captions,
        candidates=numbers(candidates, "--candidates"),
        pictures=pictures,
        seed=seed,
        bar=bar,
        grid=Path(run) / "samples" / "evaluation.png",
    )
    write(report, Path(run) / "evaluation.json")
    click.echo(json.dumps(report, indent=1) if as_json else "\n".join(lines(report)))

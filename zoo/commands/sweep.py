"""`zoo sweep`: quality over guidance and ways of sampling, of several runs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from zoo.commands.lists import amounts
from zoo.errors import ConfigError


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option(
    "--guidance", help="Guidances, such as 1,1.5,2,3,5; of a cascade, in every stage. Default: the run's own."
)
@click.option(
    "--how",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE ...",
    help="A way to sample, as 'sampler=ddim base.steps=20'; '' is the run's own. Give it once for every way.",
)
@click.option("--data", help="Dataset; what the first RUN was trained on if not given.")
@click.option("--split", default="validation", show_default=True, help="Splits, by comma.")
@click.option("--captions", type=click.IntRange(2), default=128, show_default=True, help="Captions a split.")
@click.option("--distance", default="pixels", show_default=True, help="Feature of distances: reranker, inception.")
@click.option("--stage", help="Look at the pictures of this stage of a cascade, and draw none after it.")
@click.option("--pictures", type=click.IntRange(2), default=2048, show_default=True, help="Real pictures, at most.")
@click.option("--chunk", type=click.IntRange(1), default=128, show_default=True, help="Pictures drawn at a time.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides every picture.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("sweep.png"), show_default=True)
@click.option("--again", is_flag=True, help="Draw again what is already there.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def sweep(
    runs: tuple[str, ...], guidance: str | None, changes: tuple[str, ...], data: str | None, split: str,
    captions: int, distance: str, stage: str | None, pictures: int, chunk: int, seed: int, out: Path, again: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Compare run folders RUN and ways to sample them, on the same captions and seeds; draws curves over guidance.

    \b
    zoo sweep runs/imagen runs/imagen-small-text --guidance 1,1.5,2,3,5 --captions 128 --out sweep.png
    zoo sweep runs/imagen --how "sampler=dpm++ steps=20" --how "base.sampler=ddpm base.steps=250" --captions 512
    zoo sweep runs/imagen --stage base --how "sampler=dpm++ steps=20" --how "sampler=ddpm steps=250"

    Every run is sampled in every way at every guidance, one picture a caption. Accuracy, where the data allows such a
    check (shapes), has a 95% interval; so has the difference to the run's first way, paired by caption; a second table
    counts what was obeyed by kind of caption. The numbers are beside the picture, as .json: what is there already is
    not drawn again, and a stopped sweep goes on.
    """
    from zoo.evaluate import plots
    from zoo.evaluate.cells import Kept, Sweep, fingerprint
    from zoo.evaluate.sweep import draw_cells
    from zoo.evaluate.sweep_report import lines, report_of
    from zoo.front import bar
    from zoo.runs import RunFolder

    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out: a picture's name ends in .png, got '{out}'")
    asked = Sweep(
        runs={run: fingerprint(run) for run in runs},
        data=data or RunFolder(runs[0]).data["data"],
        splits=tuple(dict.fromkeys(split.split(","))),
        changes=tuple(dict.fromkeys(tuple(text.split()) for text in changes)) or ((),),
        guidances=(None,) if guidance is None else amounts(guidance, "--guidance", "1,1.5,2,3"),
        captions=captions,
        feature=distance,
        stage=stage,
        pictures=pictures,
        seed=seed,
        chunk=chunk,
    )
    kept = Kept(out.with_suffix(".json"))
    draw_cells(asked, kept, bar=bar, again=again, save=lambda: kept.write(report_of(asked, kept)))
    report = report_of(asked, kept)
    kept.write(report)
    plots.swept(report, out)
    click.echo(json.dumps(report, indent=1) if as_json else "\n".join([*lines(report), f"{out}, {kept.path}"]))

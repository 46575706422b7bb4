"""`zoo probe`: what the layers of a run know of classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from zoo.commands.lists import whole_numbers
from zoo.errors import ConfigError

SOLVERS = ("lbfgs", "sgd")


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--data", required=True, help="Labelled data: shapes, cifar10:PATH, mnist:PATH, folder:PATH ...")
@click.option("--layers", default="all", show_default=True, help="Layers, by comma: 0,4,8; fewer take less memory.")
@click.option("--labels-per-class", "few", metavar="4,25,400", help="Also fit the best layer's probe on few labels.")
@click.option("--draws", type=click.IntRange(1), default=5, show_default=True, help="Draws of few labels.")
@click.option("--concat", type=click.IntRange(0), default=0, help="Also probe this many layers round the best, joined.")
@click.option("--solver", type=click.Choice(SOLVERS), default="lbfgs", show_default=True)
@click.option("--steps", type=click.IntRange(1), default=2000, show_default=True, help="Updates of --solver sgd.")
@click.option("--masks", type=click.IntRange(1), default=5, show_default=True, help="Masks that vote (BERT runs).")
@click.option(
    "--pictures",
    type=click.IntRange(0),
    default=10000,
    show_default=True,
    help="To fit on, besides those that choose; 0: all.",
)
@click.option("--checkpoints", is_flag=True, help="Every checkpoint a run has kept: accuracy against validation loss.")
@click.option("--compare", "comparing", is_flag=True, help="Compute nothing: one table of results there are.")
@click.option("--chunk", type=click.IntRange(1), default=64, show_default=True, help="Pictures at a time.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides masks and draws.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder. Default: RUN/probe/DATA.")
@click.option("--json", "as_json", is_flag=True, help="Print the reports as JSON.")
def probe(
    runs: tuple[str, ...], data: str, layers: str, few: str | None, checkpoints: bool, comparing: bool,
    out: Path | None, pictures: int, as_json: bool, **how: Any,
) -> None:  # fmt: skip
    """Fit a linear classifier on every layer of the run folders RUN..., and say how many test pictures it tells right.

    \b
    zoo probe runs/imagegpt --data shapes                           accuracy over layers, a table and layers.png
    zoo probe runs/imagegpt --data cifar10:cifar-10-batches-py --labels-per-class 4,25,400
    zoo probe runs/small runs/large --data shapes --out probes      several runs in one table and picture
    zoo probe runs/small runs/large --data shapes --checkpoints     accuracy against loss (train with --keep 10)
    zoo probe runs/ar runs/bert --data shapes --compare             probes and `zoo finetune` side by side

    The features are the run's own, frozen; penalty or learning rate and the best layer are chosen on pictures that
    are not judged; the last fit takes them in too, unless they are more than --pictures. A run that has learnt from
    masked codes is shown masked ones, and --masks vote.
    """
    from zoo.probing import results
    from zoo.probing.probe import Ask

    asked = None if layers == "all" else tuple(sorted(whole_numbers(layers, "--layers", "0,4,8", 0)))
    labels = () if few is None else tuple(sorted(whole_numbers(few, "--labels-per-class", "4,25", 1)))
    ask = Ask(layers=asked, labels_per_class=labels, **how)
    if comparing and checkpoints:
        raise ConfigError("--compare reads results and --checkpoints makes others; type one of the two")
    together = out or (Path("probe") if len(runs) > 1 else results.place(runs[0], "probe", data))
    if comparing:
        _compare(runs, data, out or Path("probe"), as_json)
        return
    reports = [(_checkpoints if checkpoints else _probe)(run, data, pictures, ask, _folder(run, data, runs, out))
               for run in runs]  # fmt: skip
    said = _draw_checkpoints(reports, together) if checkpoints else _draw(reports, together)
    click.echo(json.dumps(reports if len(reports) > 1 else reports[0], indent=1) if as_json else said)


def _folder(run: str, data: str, runs: Sequence[str], out: Path | None) -> Path:
    """Return where one run's own report goes: into itself, unless it is the only one and --out says where."""
    from zoo.probing import results

    return out if out is not None and len(runs) == 1 else results.place(run, "probe", data)


def _probe(run: str, data: str, pictures: int, ask: Any, folder: Path) -> dict[str, Any]:
    from zoo.front import bar
    from zoo.probing import features, probe, results, splits

    subject = features.subject(run)
    found = splits.splits(data, size=subject.size, pictures=pictures)
    report = probe.probe(subject, found, ask, bar=bar, folder=folder)
    results.write(report, folder / results.PROBE)
    return report


def _checkpoints(run: str, data: str, pictures: int, ask: Any, folder: Path) -> dict[str, Any]:
    from zoo.front import bar
    from zoo.probing import checkpoints, features, results, splits

    subject = features.subject(run, ready=False)
    found = splits.splits(data, size=subject.size, pictures=pictures)
    report = checkpoints.over_checkpoints(subject, found, ask, bar=bar)
    results.write(report, folder / results.CHECKPOINTS)
    return report


def _draw(reports: Sequence[dict[str, Any]], folder: Path) -> str:
    from zoo.probing import plots
    from zoo.probing.probe import lines

    drawn: list[tuple[str, Callable[..., None]]] = [("layers.png", plots.over_layers)]
    if all("labels_per_class" in report for report in reports):
        drawn.append(("labels.png", plots.over_labels))
    for name, draw in drawn:
        draw(reports, folder / name)
    text = [line for report in reports for line in (*lines(report), "")]
    return "\n".join([*text, *(str(folder / name) for name, _ in drawn)])


def _draw_checkpoints(reports: Sequence[dict[str, Any]], folder: Path) -> str:
    from zoo.probing import plots
    from zoo.probing.checkpoints import lines

    path = folder / "checkpoints.png"
    plots.over_loss(reports, path)
    return "\n".join([*(line for report in reports for line in (*lines(report), "")), str(path)])


def _compare(runs: Sequence[str], data: str, folder: Path, as_json: bool) -> None:
    from zoo.probing import plots, results

    rows = results.compare(runs, data)
    results.write({"data": data, "rows": rows}, folder / "compare.json")
    plots.compared(rows, folder / "compare.png", data)
    text = "\n".join([*results.table(rows), "", str(folder / "compare.png")])
    click.echo(json.dumps(rows, indent=1) if as_json else text)

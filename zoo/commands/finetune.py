"""`zoo finetune`: a run's prior trained on with a class head."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("run", metavar="RUN")
@click.option("--data", required=True, help="Labelled data: shapes, cifar10:PATH, mnist:PATH, folder:PATH ...")
@click.option("--steps", type=click.IntRange(1), default=1000, show_default=True, help="Updates, at most.")
@click.option("--lr", type=click.FloatRange(0, min_open=True), help="Default: a tenth of the pre-training's.")
@click.option("--batch", type=click.IntRange(2), help="Pictures an update. Default: as in the pre-training's recipe.")
@click.option(
    "--transform", default="fit", show_default=True, help="Of training pictures: imagegpt-finetune is CIFAR's."
)
@click.option("--pictures", type=click.IntRange(0), default=10000, show_default=True, help="To train on; 0: all.")
@click.option(
    "--patience", type=click.IntRange(1), default=5, show_default=True, help="Validations that are no better."
)
@click.option("--every", type=click.IntRange(1), help="Updates between validations. Default: a tenth of --steps.")
@click.option("--looks", type=click.IntRange(0), help="Pictures of a validation. Default: 128 times --batch; 0: all.")
@click.option("--masks", type=click.IntRange(1), default=5, show_default=True, help="Masks that vote (BERT runs).")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides everything random.")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder. Default: RUN/finetune/DATA.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def finetune(
    run: str, data: str, transform: str, pictures: int, out: Path | None, as_json: bool, **how: Any
) -> int:  # fmt: skip
    """Train the prior of the run folder RUN on, with a class head: its own loss plus the classes' cross-entropy.

    \b
    zoo finetune runs/imagegpt --data shapes --steps 1000
    zoo finetune runs/imagegpt --data cifar10:cifar-10-batches-py --transform imagegpt-finetune --out runs/cifar
    zoo finetune runs/imagegpt --data shapes --steps 1000 --resume      after a stop
    zoo probe runs/ar runs/bert --data shapes --compare                 probes and fine-tuning side by side

    A validation passes --looks pictures forward, a third of the work of as many that are trained on; at the end as many
    as a fifth of --pictures, or 1000, are judged. So --batch, --steps, --looks decide how long it takes: see the bar.
    It stops when validation is no better for a while and keeps the most accurate weights. Ctrl-C saves a checkpoint.
    The folder is a run like any other (zoo sample, zoo probe), with head.safetensors, finetune.json and curves.
    """
    from zoo.front import bar
    from zoo.probing import features, results, splits
    from zoo.probing.finetune import finetune as train
    from zoo.probing.finetune import lines
    from zoo.probing.watch import Settings
    from zoo.train.interrupt import Interrupted
    from zoo.train.loop import Diverged

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    subject = features.subject(run)
    found = splits.splits(data, size=subject.size, pictures=pictures, transform=transform)
    folder = out or results.place(run, "finetune", data)
    try:
        report = train(subject, found, Settings(**how), folder, bar=bar)
    except Interrupted as stop:
        click.echo(f"zoo finetune: {stop}, and saved in {folder}; go on with --resume", err=True)
        return stop.exit_code
    except Diverged as error:
        click.echo(f"zoo finetune: {error}; type a lower --lr", err=True)
        return 1
    results.write(report, folder / results.FINETUNE)
    click.echo(json.dumps(report, indent=1) if as_json else "\n".join([*lines(report), "", str(folder)]))
    return 0

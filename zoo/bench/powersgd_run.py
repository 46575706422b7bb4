"""What compressed gradients do to a training: a prior trained by two machines of two processes, five ways.

The plain mean between the machines, PowerSGD as published and DALL-E's variant, each begun early and late, train the
same prior on the same codebook with the same batches. Compared are the loss on validation data, the bytes that a
process puts into the reduction between machines, with what `zoo plan` says of them, and at the end the weights of the
two machines, which must be equal to the bit.

    python -m zoo.bench.powersgd_run --work runs/bench-powersgd
    python -m zoo.bench.powersgd_run --work runs/bench-powersgd --only dense        one training at a time

A training that is done is not made again, and one that was stopped goes on from its last checkpoint.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click
import torch

from zoo import registry
from zoo.bench import processes, replicas
from zoo.bench.timing import Row
from zoo.planning.plan import Plan, plan
from zoo.rng import Rng
from zoo.runs import RunFolder
from zoo.train.metrics import read_rows
from zoo.train.reduction import total_sent
from zoo.train.stage import recipe_of

PART, DENSE = "prior", "dense"
LAYOUT: Mapping[str, Any] = {"zero": 3, "per_node": 2, "shard": "machine"}
DEVICES = 4
VARIANTS: Mapping[str, str | None] = {
    DENSE: None,
    # Of the card's prior, 128 wide and in two shards: rank 6 of a shard, 10.7 times fewer values.
    "powersgd": "powersgd:rank=12",
    # The same, begun when most of the loss is gone.
    "powersgd-late": "powersgd:rank=12,dense_steps=700",
    # The paper's share of the width, 896 / 3968: rank 15 of a shard, 4.3 times fewer.
    "powersgd-dalle": "powersgd-dalle:rank=29",
    "powersgd-dalle-late": "powersgd-dalle:rank=29,dense_steps=700",
}
"""Name -> reducer."""
VALIDATION, CHUNK = 2048, 256
"""Samples that are evaluated, and of them at a time."""


@attrs.frozen(kw_only=True)
class Work:
    """What is trained, and where."""

    folder: Path
    model: str = "dalle"
    steps: int = 1000
    batch: int = 32
    codebook_steps: int | None = None
    """Updates of the codebook; None: its recipe's."""

    @property
    def codebook(self) -> Path:
        """The run whose codebook all are trained on."""
        return self.folder / "codebook"

    def out(self, name: str) -> Path:
        """Return the run folder of a variant."""
        return self.folder / name

    def done(self, name: str) -> bool:
        """Return whether a variant is trained."""
        return (self.out(name) / f"{PART}.safetensors").exists()

    def command(self, name: str) -> dict[str, Any]:
        """Return the training command of a variant."""
        return {
            "model": self.model, "part": PART, "out": str(self.out(name)), "steps": self.steps, "batch": self.batch,
            "set": [f"codebook={self.codebook}"], "reducer": VARIANTS[name], "sample_every": 0, "resume": True,
            **LAYOUT,
        }  # fmt: skip

    def plan(self, name: str) -> Plan:
        """Return the plan of the same job."""
        return plan(
            str(self.out(name)), part=PART, devices=DEVICES, batch=self.batch, precision="fp32",
            reducer=VARIANTS[name], **LAYOUT,
        )  # fmt: skip


@attrs.frozen(kw_only=True)
class Found:
    """What came of one training; bytes are payload of one process."""

    name: str
    loss: float
    """On validation data, nats."""
    sent: int
    """Between machines, in all."""
    planned: int
    """What `zoo plan` says of the same."""
    update: int
    """The last update's."""
    rest: int
    """Planned, of one update: what is not compressed."""
    matrices_dense: int
    """Planned, of one update: the compressed matrices as they are, in the number format their factors are sent in; 0
    where none is compressed, or all updates were start-up ones."""
    unequal: int
    """Processes that hold other weights at the end than their like."""

    @property
    def matrices(self) -> int:
        """The last update's, for the compressed matrices."""
        return self.update - self.rest if self.matrices_dense else 0


def train(work: Work, names: Iterable[str]) -> None:
    """Train what is not done, the codebook by one process.

    Raises:
        Failed: a process failed.
    """
    left = [name for name in names if not work.done(name)]
    if left and not (work.codebook / "codebook.safetensors").exists():
        print("codebook", file=sys.stderr)
        said = {"model": work.model, "part": "codebook", "out": str(work.codebook), "steps": work.codebook_steps}
        processes.train(1, [{**said, "sample_every": 0, "resume": True}])
    for name in left:
        print(f"{name}: {work.steps} updates into {work.out(name)}", file=sys.stderr)
        processes.train(DEVICES, [work.command(name)], program="zoo.bench.replicas", minutes=240)


@torch.no_grad()
def validation_loss(run: Path, samples: int = VALIDATION) -> float:
    """Return the mean loss of a run's prior on validation data: the averaged weights, no dropped captions."""
    system = registry.load_system(str(run), device="cpu")
    system.eval()
    recipe, folder = recipe_of(system, PART), RunFolder(run)
    data = registry.open_dataset(
        folder.data["data"], split="validation", size=system.config.image_size, transform=recipe.transform
    )
    losses, rows = [], list(range(min(samples, len(data))))
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        rng = Rng(0, part)
        batch = system.encode(PART, data.read(part, rng.fork("data")), rng=rng.fork("encode"))
        losses += [float(system.loss(PART, batch, step=0, rng=rng)["loss"])] * len(part)
    return sum(losses) / len(losses)


def planned(made: Plan, steps: int, dense_steps: int) -> int:
    """Return the bytes that a training of so many updates sends between machines by its plan."""
    if made.reduced is None:
        return steps * made.bytes_sent(between=True)["sent"]
    first = min(steps, dense_steps)
    return first * made.reduced.start_up + (steps - first) * made.reduced.sent


def look(work: Work, name: str) -> Found:
    """Return what came of a finished training."""
    made, said = work.plan(name), VARIANTS[name]
    dense_steps = 0 if said is None else registry.reducer_config(said).dense_steps
    rows = [row for row in read_rows(work.out(name) / "metrics.jsonl") if row["part"] == PART]
    less = made.reduced if work.steps > dense_steps else None
    return Found(
        name=name,
        loss=validation_loss(work.out(name)),
        sent=total_sent(rows),
        planned=planned(made, work.steps, dense_steps),
        update=int(rows[-1]["sent"]),
        rest=0 if less is None else less.rest,
        matrices_dense=0 if less is None else less.matrices_dense,
        unequal=replicas.unequal(work.out(name), PART, made.job.group),
    )


def table(found: Sequence[Found]) -> str:
    """Return the figures for a reader; what is compared with the dense training is left out where there is none."""
    dense = next((one for one in found if one.name == DENSE), None)
    lines = []
    for one in found:
        beside = f" ({one.loss / dense.loss - 1:+.2%} of dense)" if dense is not None and one is not dense else ""
        lines.append(f"{one.name}: validation loss {one.loss:.4f} nats{beside}")
        if one.matrices:
            lines.append(
                f"    an update's matrices: {one.matrices:,} of {one.matrices_dense:,} bytes, "
                f"{one.matrices_dense / one.matrices:.2f} times fewer"
            )
        whole = (
            f", {dense.sent / one.sent:.2f} times fewer than dense" if dense is not None and one is not dense else ""
        )
        lines.append(
            f"    the whole run: {one.sent:,} bytes{whole}; planned {one.planned:,} ({one.sent / one.planned - 1:+.3%})"
        )
        lines.append(f"    replicas: {f'{one.unequal} DIFFER' if one.unequal else 'equal to the bit'}")
    return "\n".join(lines)


def as_rows(found: Sequence[Found], work: Work) -> list[Row]:
    """Return the rows of all trainings."""
    dense = next(one for one in found if one.name == DENSE)
    sizes = {"steps": work.steps, "batch": work.batch, "processes": DEVICES}
    rows = []
    for one in found:
        label = VARIANTS[one.name] or DENSE

        def row(
            what: str, ours: float, peer: float, unit: str, ratio: float | None = None, label: str = label
        ) -> None:  # fmt: skip
            rows.append(Row(f"{label}: {what}", ours, peer, peer / ours if ratio is None else ratio, unit, sizes))

        if one is not dense:
            row("validation loss beside dense", one.loss, dense.loss, "nats")
            row("a compressed update's matrices, in one number format", one.matrices, one.matrices_dense, "bytes",
                None if one.matrices else 0.0)  # fmt: skip
            row("the whole run beside dense", one.sent, dense.sent, "bytes")
        row("the whole run beside its plan", one.sent, one.planned, "bytes")
        row("processes whose weights differ from their like's", one.unequal, 0, "processes", float(not one.unequal))
    return rows


def rows(work: Work | None = None) -> list[Row]:
    """Return the rows, having trained what is not trained yet.

    Raises:
        Failed: a process failed.
    """
    if work is None:
        with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
            return rows(Work(folder=Path(folder)))
    train(work, VARIANTS)
    found = [look(work, name) for name in VARIANTS]
    print(table(found), file=sys.stderr)
    return as_rows(found, work)


@click.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where runs are kept.")
@click.option("--only", type=click.Choice(list(VARIANTS)), help="Train this one.")
@click.option("--model", default="dalle", show_default=True)
@click.option("--steps", default=1000, show_default=True)
@click.option("--batch", default=32, show_default=True)
@click.option("--codebook-steps", type=int, help="Default: its recipe's.")
def main(only: str | None, work: Path, **sizes: Any) -> None:
    """Train, and print what came of the trainings that are done."""
    job = Work(folder=work, **sizes)
    train(job, VARIANTS if only is None else [only])
    click.echo(table([look(job, name) for name in VARIANTS if job.done(name)]))


if __name__ == "__main__":
    main()

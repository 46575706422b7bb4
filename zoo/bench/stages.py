"""Every stage of a system, trained by one process, by two at every ZeRO stage, and by two machines of two.

What is compared is the loss of every update with that of one process, which runs the core's own engine on the whole
batch in one piece. The prior, whose loss is a mean over the tokens of a batch, is trained again on captions of very
different lengths, as it is and with every process's share cut into micro-batches.

High learning rates make much of a rounding: at the laptop recipe's 6e-3 the dVAE's losses part within tens of updates
whatever differs in the last bit. So the codebook and the reranker are trained at their papers' rates too, and there are
two controls: one process with two threads, which sums in another order and is the same training otherwise; and one
process beside two and four of the core's own engine in double precision, where only a fault of it could part them.

    python -m zoo.bench.stages --work runs/bench-stages        about a quarter of an hour on two cores

A training whose folder is in `--work` and done is not made again.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import click

from zoo import registry
from zoo.bench import processes
from zoo.bench.timing import Row
from zoo.train.metrics import read_rows

BAR = 1e-5
"""Largest relative difference of a loss that passes."""
ROUNDING = 2.0**-24
"""Relative rounding of a loss in fp32; smaller differences are none."""
PICTURES = 256


@attrs.frozen(kw_only=True)
class Layout:
    """Processes, and what their commands say beside the stage."""

    processes: int
    said: Mapping[str, Any] = attrs.field(factory=dict)
    threads: int = 1
    """Of each."""
    beside: str = "one process"
    """Which training's losses these should be."""


@attrs.frozen(kw_only=True)
class Case:
    """One training."""

    part: str
    ragged: bool = False
    """Trained on captions of very different lengths."""
    pieces: int = 1
    """Micro-batches of a share."""
    rate: float | None = None
    """Learning rate; None: the recipe's."""

    @property
    def name(self) -> str:
        """What tables and folders say."""
        said = {
            f"rate {self.rate}": self.rate is not None,
            "ragged captions": self.ragged,
            f"{self.pieces} pieces": self.pieces > 1,
        }
        return ", ".join([self.part, *(text for text, true in said.items() if true)])

    @property
    def whole(self) -> Case:
        """The same with the batch in one piece."""
        return attrs.evolve(self, pieces=1)


ONE, CODEBOOK = "one process", Case(part="codebook")
ONE_DOUBLE, DOUBLE = "one process, double", {"engine": "double"}
ALONE = {ONE: Layout(processes=1), ONE_DOUBLE: Layout(processes=1, said=DOUBLE)}
LAYOUTS = {
    "one, two threads": Layout(processes=1, threads=2),
    **{f"2 processes, ZeRO {zero}": Layout(processes=2, said={"zero": zero}) for zero in range(4)},
    "2 x 2, ZeRO 3": Layout(processes=4, said={"zero": 3, "per_node": 2, "shard": "machine"}),
    **{f"{n} processes, double": Layout(processes=n, said=DOUBLE, beside=ONE_DOUBLE) for n in (2, 4)},
}
CASES = (
    CODEBOOK,
    Case(part="codebook", rate=1e-4),  # of DALL-E's dVAE, appendix A.2
    Case(part="reranker"),
    Case(part="reranker", rate=5e-4),  # of CLIP's ViT-B/32, table 20
    Case(part="prior"),
    Case(part="prior", ragged=True),
    Case(part="prior", ragged=True, pieces=2),
)


@attrs.frozen(kw_only=True)
class Work:
    """What is trained, and where."""

    folder: Path
    model: str = "dalle"
    steps: int = 50
    batch: int = 16

    @property
    def pictures(self) -> Path:
        """Where the data with ragged captions is."""
        return self.folder / "pictures"

    def out(self, layout: str, case: Case) -> Path:
        """Return the run folder of a training."""
        return self.folder / f"{layout} {case.name}".replace(",", "").replace(" ", "-")

    def command(self, layout: str, how: Layout, case: Case) -> dict[str, Any]:
        """Return a training command."""
        said = {
            "model": self.model, "part": case.part, "out": str(self.out(layout, case)), "steps": self.steps,
            "batch": self.batch, "accumulate": case.pieces, "sample_every": 0, "save_every": self.steps,
        }  # fmt: skip
        data = {"data": f"folder:{self.pictures}"} if case.ragged else {}
        rate = {} if case.rate is None else {"set": (f"{case.part}.train.lr={case.rate}",)}
        return {**said, **data, **rate, **how.said, "threads": how.threads}

    def done(self, layout: str, case: Case) -> bool:
        """Return whether a training has ended."""
        return (self.out(layout, case) / f"{case.part}.safetensors").exists()

    def losses(self, layout: str, case: Case) -> list[float]:
        """Return the loss of every update of a training."""
        rows = read_rows(self.out(layout, case) / "metrics.jsonl")
        return [row["loss"] for row in rows if row["part"] == case.part]


def write_pictures(folder: Path) -> None:
    """Write pictures with a caption of one word each, and every third with two captions of `shapes` in a row."""
    from PIL import Image

    batch = registry.open_dataset("shapes", split="train", size=32).read(list(range(PICTURES)))
    assert batch.images is not None
    assert batch.texts is not None
    folder.mkdir(parents=True)
    for i, (pixels, text) in enumerate(zip(batch.images, batch.texts, strict=True)):
        Image.fromarray((pixels.movedim(0, -1) * 255).round().byte().numpy()).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(text.split()[2] if i % 3 else f"{text} {batch.texts[i - 1]}")


def train(work: Work, layout: str, how: Layout, cases: Iterable[Case]) -> None:
    """Train what is not done, in one launch; a prior begins with the codebook of one process."""
    left = [case for case in cases if not work.done(layout, case)]
    for case in left:
        out = work.out(layout, case)
        shutil.rmtree(out, ignore_errors=True)  # half a run
        if case.part == "prior":
            out.mkdir()
            for name in ("run.toml", "codebook.safetensors"):
                shutil.copy(work.out(ONE, CODEBOOK) / name, out)
    if left:
        print(f"{layout}: {'; '.join(case.name for case in left)}", file=sys.stderr)
        processes.train(how.processes, [work.command(layout, how, case) for case in left])


def train_all(work: Work) -> None:
    """Train every case in every layout.

    Raises:
        Failed: a process failed.
    """
    if not work.pictures.exists():
        write_pictures(work.pictures)
    train(work, ONE, ALONE[ONE], [CODEBOOK])
    for name, how in ALONE.items():
        train(work, name, how, dict.fromkeys(case.whole for case in CASES))
    for layout, how in LAYOUTS.items():
        train(work, layout, how, CASES)


def apart(one: Sequence[float], two: Sequence[float], steps: int) -> float:
    """Return the largest relative difference of losses, infinite where either has not one for every update."""
    if not len(one) == len(two) == steps:
        return float("inf")
    return max(abs(a - b) / abs(a) for a, b in zip(one, two, strict=True))


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the differences by layout and case, for a reader."""
    names = [case.name for case in CASES]
    lines = [" " * 22 + "".join(f"{name:>{len(name) + 3}}" for name in names)]
    for layout, values in found.items():
        lines.append(f"{layout:22}" + "".join(f"{values[name]:{len(name) + 3}.1e}" for name in names))
    return "\n".join(lines)


def rows(work: Work | None = None) -> list[Row]:
    """Return a row a layout and case; a ratio of 1 or more is within the bar.

    Raises:
        Failed: a process failed.
    """
    if work is None:
        with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
            return rows(Work(folder=Path(folder)))
    train_all(work)
    found = {
        layout: {
            case.name: apart(work.losses(how.beside, case.whole), work.losses(layout, case), work.steps)
            for case in CASES
        }
        for layout, how in LAYOUTS.items()
    }
    print(table(found), file=sys.stderr)
    unit = "largest relative difference from one process's losses"
    sizes = {"steps": work.steps, "batch": work.batch}
    return [
        Row(
            f"{work.model} {case.name}: {layout}", found[layout][case.name], BAR,
            BAR / max(found[layout][case.name], ROUNDING), unit, {**sizes, "processes": how.processes},
        )
        for layout, how in LAYOUTS.items() for case in CASES
    ]  # fmt: skip


@click.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where runs are kept.")
@click.option("--model", default="dalle", show_default=True)
@click.option("--steps", default=50, show_default=True)
def main(work: Path, model: str, steps: int) -> None:
    """Train, and print the rows."""
    for row in rows(Work(folder=work, model=model, steps=steps)):
        click.echo(f"{row.name}: {row.ours:.2g} (bar {row.peer:.0e}){'' if row.ratio >= 1 else ', BEYOND'}")


if __name__ == "__main__":
    main()

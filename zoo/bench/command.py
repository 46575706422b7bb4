"""The command line of the benchmarks."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence

import attrs
import click

from zoo import front
from zoo.errors import UnknownName

BENCHES = {
    "attention": "zoo.bench.attention",
    "candidates": "zoo.bench.candidates",
    "dalle": "zoo.bench.dalle",
    "diffussm": "zoo.bench.diffussm",
    "imagegpt": "zoo.bench.imagegpt",
    "imagegpt-run": "zoo.bench.imagegpt_run",
    "imagen": "zoo.bench.imagen",
    "memory": "zoo.bench.memory",
    "moments": "zoo.bench.moments",
    "powersgd": "zoo.bench.powersgd",
    "powersgd-run": "zoo.bench.powersgd_run",
    "resblock": "zoo.bench.resblock",
    "s4d": "zoo.bench.s4d",
    "samplers": "zoo.bench.samplers",
    "stages": "zoo.bench.stages",
    "vq": "zoo.bench.vq",
}
"""Name -> module with `rows() -> list[Row]`."""
PEERS = ("attention", "dalle", "imagegpt", "imagen", "resblock", "vq")
"""What is run where nothing is named; the others take up to an hour each."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="CPU threads of both sides.")
@click.option("--json", "as_json", is_flag=True, help="Print a list of {name, ours, peer, ratio, unit, sizes}.")
def bench(names: tuple[str, ...], threads: int, as_json: bool) -> None:
    """Run the benchmarks NAME; attention, dalle, imagegpt, imagen, resblock and vq if none is named.

    Ours and the peer run in turn in one process; figures are medians, and the ratio is taken pair by pair. Use a
    machine with nothing else running. (resblock compares what trainings end at.)

    moments: Adam's in 16 bits beside fp32 ones, in bytes, time and the loss of a training.

    imagegpt-run: ImageGPT and transformers' trained for ten minutes each, in bits per dimension.

    diffussm: DiffuSSM-S beside DiT-S over the number of positions; `python -m zoo.bench.diffussm` draws it.

    s4d: the state space layer, beside a public file that S4D_FILE names.

    candidates: what a process needs to draw 512 pictures of a caption, beside 64.

    Trainings in several processes on this machine, each compared with what it should be: memory, powersgd,
    powersgd-run, stages. `python -m zoo.bench.powersgd_run --help` and `python -m zoo.bench.stages --help` keep what is
    done, and go on with it.
    """
    import torch

    torch.set_num_threads(threads)
    rows = []
    for name in names or PEERS:
        if name not in BENCHES:
            raise UnknownName("benchmark", name, BENCHES)
        rows += importlib.import_module(BENCHES[name]).rows()
    if as_json:
        click.echo(json.dumps([attrs.asdict(row) for row in rows], indent=1))
        return
    for row in rows:
        share = f", {row.peak_share:.1%} of the matmul peak" if row.peak_share is not None else ""
        click.echo(f"{row.name}: ours {row.ours:.4g}, peer {row.peer:.4g} {row.unit}, ratio {row.ratio:.2f}{share}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    return front.run(bench, "bench.py", argv)

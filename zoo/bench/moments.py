"""Adam's moments in 16 bits beside fp32 ones: bytes, time of a step and of a whole update, and the loss of a training.

Bytes and times are of a DALL-E prior of width 512 and depth 8 on 8,192 codes, of which the residual blocks' matrices
are three quarters, and bytes also of DALL-E's own. The training is that of the laptop-size `dalle`'s prior, both from
one codebook and with one thread: batches and noise are the same, so losses differ by the moments alone.

    python -m zoo.bench.moments --work FOLDER        keeps what is trained, and goes on with it
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import click
import torch
from torch import Tensor

from zoo.bench import processes
from zoo.bench.timing import Row, alternate
from zoo.errors import ConfigError
from zoo.interfaces import Batch, Cond, Losses
from zoo.parts import Recipe
from zoo.planning.plan import plan
from zoo.rng import Rng
from zoo.specs import locate
from zoo.train import optim, reduction
from zoo.train.metrics import read_rows
from zoo.train.shards import MOMENTS
from zoo.train.stage import Stage

WIDTH, DEPTH, HEADS, GRID, VOCAB, BATCH = 512, 8, 8, (16, 16), 8192, 1
KINDS = ("16-bit", "fp32")
MODEL, CODEBOOK_STEPS, STEPS, LAST = "dalle", 300, 500, 50
"""The training: losses are means over its last updates."""
LARGE = "dalle-12b"


class System:
    """What a stage needs of a system: a prior that reads nothing."""

    def __init__(self, width: int = WIDTH, depth: int = DEPTH, vocab: int = VOCAB) -> None:
        config = locate("zoo_dalle.configs:DallePrior")(
            width=width, depth=depth, heads=HEADS, vocab_size=vocab, grids=(GRID,), reads="nothing", cond_drop=0.0
        )
        torch.manual_seed(0)
        self.parts: dict[str, Any] = {"prior": locate("zoo_dalle.model:DallePrior")(config)}
        self.stages = {"prior": ("prior",)}

    def reads(self, part: str) -> tuple[str, ...]:
        """Return the frozen parts that a stage reads: none."""
        return ()

    def loss(self, part: str, batch: Batch, *, step: int, rng: Rng) -> Losses:
        """Return the prior's."""
        return self.parts["prior"].loss(batch, Cond(), step=step, rng=rng)


class Training:
    """A prior and its optimiser, at the tenth update."""

    def __init__(self, moments: Any, kernel: Any = "plain", **size: int) -> None:
        system = System(**size)
        recipe = Recipe(
            lr=4.5e-4, betas=(0.9, 0.96), weight_decay=0.045, clip=4.0, moments=moments, moments_kernel=kernel
        )  # the paper's
        self.stage, self.clip = Stage(system, "prior").train(), recipe.clip
        self.optimizer = optim.optimizer(self.stage, recipe)
        vocab = system.parts["prior"].config.vocab_size
        self.codes = Rng(0, range(BATCH)).integers(vocab, GRID[0] * GRID[1])
        for _ in range(10):
            self.update()

    def gradients(self) -> list[Tensor]:
        """Return the gradients of a batch."""
        for p in self.stage.parameters():
            p.grad = None
        self.stage(Batch(codes=self.codes), 0, Rng(0, range(BATCH)))["loss"].backward()
        return [p.grad for p in self.stage.parameters() if p.grad is not None]

    def step(self) -> None:
        """Make the optimiser's step with the gradients that are there."""
        assert self.optimizer is not None
        self.optimizer.step()

    def update(self) -> None:
        """Make an update as an engine does."""
        grads = self.gradients()
        norm = float(torch.stack(torch._foreach_norm(grads)).norm())
        reduction.clip(grads, norm, self.clip)
        self.step()

    def bytes(self, *, matrices: bool) -> int:
        """Return the optimiser state's bytes, of the residual blocks' matrices or of all parameters."""
        assert self.optimizer is not None
        inside = optim.adam16.split([{"params": list(self.stage.parameters())}], self.stage)[0]["params"]
        kept = {id(p) for p in (inside if matrices else self.stage.parameters())}
        held = [state[kind] for p, state in self.optimizer.state.items() if id(p) in kept for kind in MOMENTS]
        return sum(x.numel() * x.element_size() for x in held)


def costs(pairs: int = 7, clock: Any = "wall", **size: int) -> list[Row]:
    """Return the rows of bytes and times; without a compiler none of the compiled kernel."""
    ours, peer = (Training(kind, **size) for kind in KINDS)
    count = sum(p.numel() for p in ours.stage.parameters())
    sizes = {"params": count, "tokens": BATCH * GRID[0] * GRID[1], "threads": torch.get_num_threads()}
    rows = []
    for what, matrices in (("matrices", True), ("the whole", False)):
        held = [training.bytes(matrices=matrices) / 2**20 for training in (ours, peer)]
        rows.append(Row(f"optimiser state, {what}", held[0], held[1], held[1] / held[0], "MiB", sizes))
    kernels = {"plain": ours}
    with suppress(ConfigError):
        kernels["compiled"] = Training("16-bit", "compiled", **size)
    for kernel, mine in kernels.items():
        calls: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "optimiser step": (mine.step, peer.step), "whole update": (mine.update, peer.update),
        }  # fmt: skip
        for name, (one, two) in calls.items():
            timing = alternate(one, two, pairs=pairs, clock=clock)
            rows.append(Row(f"{name}, {kernel}", timing.ours, timing.peer, timing.ratio, "s", sizes))
    return rows


def planned() -> Row:
    """Return the row of DALL-E's own moments on 8 devices, as planned."""
    held = [
        plan(
            LARGE, overrides=(f"prior.train.moments={kind}",), devices=8, batch=8, zero=3, storage="zoo"
        ).memory.moments
        for kind in KINDS
    ]
    ours, peer = (x / 2**20 for x in held)
    return Row(f"optimiser state of {LARGE}, planned", ours, peer, peer / ours, "MiB", {"devices": 8})


@attrs.frozen
class Work:
    """The trainings, which are kept in a folder."""

    folder: Path
    codebook_steps: int = CODEBOOK_STEPS
    steps: int = STEPS

    def losses(self, kind: str) -> list[float]:
        """Return the prior's losses so far, one an update."""
        path = self.folder / kind / "metrics.jsonl"
        return [row["loss"] for row in read_rows(path) if row.get("part") == "prior"] if path.exists() else []

    def train(self) -> None:
        """Train what is not there, both priors at once.

        Raises:
            Failed: a process failed.
        """
        base = self.folder / "codebook"
        same = {"model": MODEL, "sample_every": 0, "seed": 0}
        if not (base / "codebook.safetensors").exists():
            shutil.rmtree(base, ignore_errors=True)
            processes.train(1, [{**same, "part": "codebook", "steps": self.codebook_steps, "out": base}])
        for kind in KINDS:
            out = self.folder / kind
            if len(self.losses(kind)) >= self.steps:
                continue
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir(parents=True)
            for name in ("run.toml", "codebook.safetensors"):
                shutil.copy(base / name, out)
            said = {**same, "part": "prior", "steps": self.steps, "set": (f"prior.train.moments={kind}",), "out": out}
            processes.train(1, [said])

    def row(self) -> Row:
        """Return the row of final losses; training is done."""
        ends = [sum(self.losses(kind)[-LAST:]) / LAST for kind in KINDS]
        return Row(
            f"final loss of {MODEL}'s prior", ends[0], ends[1], ends[1] / ends[0], "nats", {"updates": self.steps}
        )


def rows(work: Work | None = None) -> list[Row]:
    """Return all rows.

    Raises:
        Failed: a training failed.
    """
    if work is None:
        with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
            return rows(Work(Path(folder)))
    found = [*costs(), planned()]
    work.train()
    return [*found, work.row()]


@click.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where runs are kept.")
@click.option("--steps", default=STEPS, show_default=True, help="Updates of each training.")
def main(work: Path, steps: int) -> None:
    """Measure, train, and print the rows."""
    torch.set_num_threads(1)
    for row in rows(Work(work, steps=steps)):
        click.echo(
            f"{row.name}: 16-bit {row.ours:.4g}, fp32 {row.peer:.4g} {row.unit}, {row.ours / row.peer:.3f} of it"
        )


if __name__ == "__main__":
    main()

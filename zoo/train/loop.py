"""The training loop: data -> encode (or a store) -> engine -> backward -> step -> metrics, checkpoint, samples.

It knows no model and no engine by name, and is the same for all. Everything that decides a run's numbers is a
function of (seed, step): the rows of a batch, the random numbers, the learning rate. So a run that goes on from a
checkpoint is the run that was never stopped, bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from zoo.interfaces import Batch
from zoo.nn import across
from zoo.parts import Recipe
from zoo.rng import Rng
from zoo.train import samples
from zoo.train.checkpoint import Checkpoints
from zoo.train.feed import Feed
from zoo.train.interrupt import SIGNALS, Interrupted, watched
from zoo.train.metrics import Metrics, draw_curves
from zoo.train.progress import Progress
from zoo.train.stage import Stage

log = logging.getLogger("zoo.train")

PATIENCE = 10
"""Updates in a row that may be skipped for a loss or gradient that is not finite."""

_CURVE_SECONDS = 30.0


class Diverged(RuntimeError):
    """Training cannot go on: too many updates in a row were not finite."""


@attrs.frozen(kw_only=True, eq=False)
class Job:
    """One stage of one training command."""

    folder: Path
    generator: Any
    stage: Stage
    engine: Any
    recipe: Recipe
    feed: Feed
    seed: int
    shown: Any
    """The dataset whose pictures and captions the samples use."""
    checkpoints: Checkpoints
    facts: Mapping[str, Any]
    """What a checkpoint must agree about to go on from it."""
    save_every: int
    sample_every: int
    """Updates between two sample pictures; 0: none."""
    told: Callable[[int, Mapping[str, Any]], None] = lambda step, row: None
    """Called after every update with the row that went to `metrics.jsonl`."""


def train(job: Job, start: int) -> None:
    """Train from update `start` to the recipe's last.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a checkpoint of the last update is there.
        Diverged: `PATIENCE` updates in a row were not finite.
    """
    part, steps, speaks = job.stage.part, job.recipe.steps, job.engine.world.rank == 0
    skipped, drawn = 0, time.monotonic()
    with (
        watched() as request,
        closing(Metrics(job.folder, part, start, writes=speaks)) as metrics,
        closing(job.feed.batches(start, steps)) as batches,
        Progress(part, steps, start, batch=job.recipe.batch, quiet=not speaks) as bar,
    ):
        for step, batch in batches:
            began = time.perf_counter()
            job.engine.world.at(step)
            values = update(job, batch, step)
            done = step + 1
            row = metrics.write(done, {**values, "seconds": time.perf_counter() - began})
            bar.advance(loss=values["loss"])
            if speaks:
                job.told(done, row)
            stop = _agreed(job, request.number)
            # An overflow that a falling gradient scale will end tries no one's patience.
            skipped = skipped + 1 if values["skipped"] and not values.get("settling") else 0
            _check_patience(part, done, skipped)
            if done == steps or stop or done % job.save_every == 0:
                job.checkpoints.save(done, job.engine.save, job.facts, job.engine.world)
                if speaks and time.monotonic() - drawn > _CURVE_SECONDS:
                    draw_curves(job.folder, part)
                    drawn = time.monotonic()
            if stop:
                raise Interrupted(stop)
            if job.sample_every and (done == steps or done % job.sample_every == 0):
                show(job, done)
    if speaks:
        draw_curves(job.folder, part)


def _agreed(job: Job, number: int) -> int:
    """Return the signal that asked any process to stop, so that all stop after the same update; 0 for none."""
    if job.engine.world.size == 1:
        return number
    asked = across.sum(torch.tensor([float(number == x) for x in SIGNALS], device=job.engine.device))
    return next((x for x, count in zip(SIGNALS, asked.tolist(), strict=True) if count), 0)


def _check_patience(part: str, step: int, skipped: int) -> None:
    if skipped >= PATIENCE:
        raise Diverged(
            f"{part}: the last {skipped} updates up to step {step} were not finite and were skipped; "
            "lower the learning rate, or use --precision fp32"
        )


def update(job: Job, batch: Batch, step: int) -> dict[str, float]:
    """Make one update on this process's share of the global batch; return all processes' losses, and the engine's
    numbers."""
    total: dict[str, Tensor] = {}
    for filled, rng in _counted(job, batch, step):
        losses = job.engine(filled, step, rng)
        job.engine.backward(losses["loss"])
        for name, x in losses.items():
            x = torch.as_tensor(x).detach().to(job.engine.device, torch.float32).mean() / job.recipe.accumulate
            total[name] = total[name] + x if name in total else x
    made = job.engine.step()
    mean = across.sum(torch.stack(list(total.values()))) / job.engine.world.size
    values = dict(zip(total, mean.tolist(), strict=True))
    if made["skipped"] and not made.get("settling"):
        _warn(job.stage.part, step + 1, values)
    return {"loss": values.pop("loss"), **values, **made}


def _pieces(job: Job, batch: Batch, step: int) -> Iterator[tuple[Batch, Rng]]:
    """Yield this process's share of the micro-batches, with what frozen parts compute, and their random numbers."""
    rng, size = job.feed.rng(step), len(batch) // job.recipe.accumulate
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        micro = batch[rows].to(job.engine.device)
        yield job.generator.encode(job.stage.part, micro, rng=rng[rows].fork("encode")), rng[rows]


def _counted(job: Job, batch: Batch, step: int) -> Iterable[tuple[Batch, Rng]]:
    """Return the micro-batches; where a loss is a mean over tokens of the whole batch, they know how many it has.

    A part says so by `tokens(batch, cond, rng)`. A batch in one piece needs no count from here: its loss can count
    over the processes itself.
    """
    pieces, counts = _pieces(job, batch, step), []
    if job.recipe.accumulate == 1 or not hasattr(job.generator.parts.get(job.stage.part), "tokens"):
        return pieces
    every = list(pieces)
    for filled, rng in every:
        counts.append(job.generator.tokens(job.stage.part, filled, rng=rng).sum())
    mean = across.sum(torch.stack(counts).sum()) / job.recipe.batch
    return [(attrs.evolve(filled, tokens=mean.expand(len(filled))), rng) for filled, rng in every]


def _warn(part: str, step: int, values: Mapping[str, float]) -> None:
    bad = [f"{name} is {x}" for name, x in values.items() if not math.isfinite(x)]
    what = ", ".join(bad) or "a gradient is not finite"
    log.warning("%s: step %d skipped: %s", part, step, what)


def show(job: Job, step: int) -> None:
    """Draw sample pictures of the averaged weights into `<run>/samples/<part>-<step>.png`."""
    path = job.folder / "samples" / f"{job.stage.part}-{step:08d}.png"
    job.generator.eval()
    try:
        with job.engine.averaged():  # on every rank; one draws
            if job.engine.world.rank == 0:
                _draw(job, step, path)
    finally:
        job.stage.train()


def _draw(job: Job, step: int, path: Path) -> None:
    try:
        for role in job.stage.roles:
            samples.draw(job.generator, role, job.shown, path, seed=job.seed, device=job.engine.device)
    except Exception as error:  # a picture is not worth a run
        log.warning("%s: no sample pictures at step %d: %s: %s", job.stage.part, step, type(error).__name__, error)

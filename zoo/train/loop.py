"""The training loop: data -> encode (or a store) -> engine -> backward -> step -> metrics, checkpoint, samples.

It knows no model and no engine by name, and is the same for all. Everything that decides a run's numbers is a
function of (seed, step): the rows of a batch, the random numbers, the learning rate. So a run that goes on from a
checkpoint is the run that was never stopped, bit for bit.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from zoo.interfaces import Batch
from zoo.parts import Recipe
from zoo.train import samples
from zoo.train.checkpoint import Checkpoints
from zoo.train.feed import Feed
from zoo.train.interrupt import watched
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
    part, steps = job.stage.part, job.recipe.steps
    skipped, drawn = 0, time.monotonic()
    with (
        watched() as request,
        closing(Metrics(job.folder, part, start)) as metrics,
        closing(job.feed.batches(start, steps)) as batches,
        Progress(part, steps, start, batch=job.recipe.batch) as bar,
    ):
        for step, batch in batches:
            began = time.perf_counter()
            values = update(job, batch, step)
            done = step + 1
            row = metrics.write(done, {**values, "seconds": time.perf_counter() - began})
            bar.advance(loss=values["loss"])
            job.told(done, row)
            skipped = skipped + 1 if values["skipped"] else 0
            _check_patience(part, done, skipped)
            if done == steps or request.number or done % job.save_every == 0:
                job.checkpoints.save(done, job.engine.save, job.facts, job.engine.world)
                if time.monotonic() - drawn > _CURVE_SECONDS:
                    draw_curves(job.folder, part)
                    drawn = time.monotonic()
            request.check()
            if job.sample_every and (done == steps or done % job.sample_every == 0):
                show(job, done)
    draw_curves(job.folder, part)


def _check_patience(part: str, step: int, skipped: int) -> None:
    if skipped >= PATIENCE:
        raise Diverged(
            f"{part}: the last {skipped} updates up to step {step} were not finite and were skipped; "
            "lower the learning rate, or use --precision fp32"
        )


def update(job: Job, batch: Batch, step: int) -> dict[str, float]:
    """Make one update on this process's share of the global batch; return its losses and the engine's numbers."""
    rng, pieces = job.feed.rng(step), job.recipe.accumulate
    size = len(batch) // pieces
    total: dict[str, Tensor] = {}
    for piece in range(pieces):
        rows = slice(piece * size, (piece + 1) * size)
        micro = batch[rows].to(job.engine.device)
        filled = job.generator.encode(job.stage.part, micro, rng=rng[rows].fork("encode"))
        losses = job.engine(filled, step, rng[rows])
        job.engine.backward(losses["loss"])
        for name, x in losses.items():
            x = torch.as_tensor(x).detach().to(job.engine.device, torch.float32).mean() / pieces
            total[name] = total[name] + x if name in total else x
    made = job.engine.step()
    values = dict(zip(total, torch.stack(list(total.values())).tolist(), strict=True))
    if made["skipped"]:
        _warn(job.stage.part, step + 1, values)
    return {"loss": values.pop("loss"), **values, **made}


def _warn(part: str, step: int, values: Mapping[str, float]) -> None:
    bad = [f"{name} is {x}" for name, x in values.items() if not math.isfinite(x)]
    what = ", ".join(bad) or "a gradient is not finite"
    log.warning("%s: step %d skipped: %s", part, step, what)


def show(job: Job, step: int) -> None:
    """Draw sample pictures of the averaged weights into `<run>/samples/<part>-<step>.png`."""
    path = job.folder / "samples" / f"{job.stage.part}-{step:08d}.png"
    job.generator.eval()
    try:
        with job.engine.averaged():
            for role in job.stage.roles:
                samples.draw(job.generator, role, job.shown, path, seed=job.seed, device=job.engine.device)
    except Exception as error:  # a picture is not worth a run
        log.warning("%s: no sample pictures at step %d: %s: %s", job.stage.part, step, type(error).__name__, error)
    finally:
        job.stage.train()

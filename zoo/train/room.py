"""Whether a stage will fit into memory, known from its plan before anything is allocated.

What is refused is what cannot be: the state alone (weights, moments, gradients, average, frozen parts) is larger than
what is free. What the whole plan says is an estimate, so that only a warning comes of it.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import math
import sys
from pathlib import Path
from typing import Any

import attrs
import torch

from zoo import registry
from zoo.construct import free_memory
from zoo.errors import ConfigError, ZooError
from zoo.parts import Recipe
from zoo.planning.devices import GIB
from zoo.planning.jobs import Job, job_of
from zoo.planning.memory import Memory, memory, sampling
from zoo.planning.stages import Stage, stage_of
from zoo.planning.traffic import reduced
from zoo.resolution import Node

log = logging.getLogger("zoo.train")

UNLIMITED = 1 << 62
MACHINE = "this machine"


@attrs.frozen(kw_only=True)
class Room:
    """What a stage needs of one memory, and what is free there."""

    stage: Stage
    job: Job
    here: int
    """Processes that share the memory: those of this machine on a CPU, one on a GPU."""
    free: int
    where: str
    """"this machine", "cuda:0"."""

    def need(self, **changed: Any) -> Memory:
        """Return a process's memory, of the job with some of its fields changed."""
        job = attrs.evolve(self.job, **changed)
        settings = None if job.reducer is None else registry.reducer_config(job.reducer)
        return memory(self.stage, job, reduced(self.stage.cost, job, settings))

    def refusal(self) -> str:
        """Return why the stage cannot be trained here, and what may help; "" where its state fits."""
        need = self.here * self.need().state
        if need <= self.free:
            return ""
        return f"{self._said(need, 'for weights, gradients and optimiser alone')}: {self._instead()}"

    def warning(self) -> str:
        """Return that it may not fit, and what may help; "" where the whole plan fits."""
        need = self.here * self.need().total
        if need <= self.free:
            return ""
        ways = [] if self.job.recompute or not self.stage.cost.blocks else ["--recompute"]
        if self.job.micro > 1:
            ways.append(
                "a smaller --batch" if self.stage.cost.whole_batch else "a smaller --batch or more --accumulate"
            )
        ways += ["--zero 3"] if self.job.zero < 3 and self.job.devices > 1 else []
        less = f"; if memory runs out: {', '.join(ways) or 'more processes on other devices'}"
        return self._said(need, "at the fullest moment, by its plan") + less

    def without_pictures(self) -> str:
        """Return why no sample pictures can be drawn while training; "" where they can."""
        need = self.here * sampling(self.stage, self.job)
        if need <= self.free:
            return ""
        return f"{self._said(need, 'with its parameters whole on every process')}: no sample pictures are drawn"

    def _said(self, need: int, what: str) -> str:
        each = f" ({self.here} processes)" if self.here > 1 else ""
        return (
            f"{self.stage.part}: training needs {_gib(need)} GiB{each} {what}, and {self.where} has "
            f"{_gib(self.free)} GiB free"
        )

    def _instead(self) -> str:
        """Return what to type where the state does not fit."""
        if self.job.zero < 3 and self.job.devices > 1:
            for shard in ("machine", "all"):
                if self.here * self.need(zero=3, shard=shard, reducer=None).state <= self.free:
                    return f"take --zero 3 --shard {shard}"
        frozen = 4 * self.stage.frozen_params
        copy = self.need(zero=3, devices=1, per_node=1, reducer=None).state - frozen
        left = self.free - self.here * frozen
        if left <= 0:
            return "free some memory, or take smaller parts (--set)"
        few = max(2, math.ceil(copy / left))
        what = "machines" if self.where == MACHINE else "GPUs"
        return f"share it between {few} or more such {what} with --zero 3 --shard all, or take a smaller model (--set)"


def check_room(
    node: Node, config: Any, part: str, recipe: Recipe, options: Any, world: Any, *, zero: int, per_node: int,
    here: int, device: torch.device,
) -> bool:  # fmt: skip
    """Refuse a stage whose state exceeds the free memory, warn of one whose plan does; all processes call this.

    Nothing is said of a stage that cannot be planned: a part that states no cost, numbers that others refuse.

    Args:
        node, config: the resolved system.
        part: the stage.
        recipe: with what the command says in its place.
        options: `TrainOptions`, of which `shard`, `reducer`, `precision`, `recompute`, `sample_every` and
            `engine_config` are read.
        world: the processes.
        zero: the engine's ZeRO stage, 0 for one that does not shard.
        per_node: processes of a machine, as copies are divided.
        here: processes that were started on this machine.
        device: where this process trains.

    Returns:
        Whether there is room to draw sample pictures while it trains, on every process.

    Raises:
        ConfigError: on every process, where the state does not fit on one of them.
    """
    room = room_of(node, config, part, recipe, options, world.size, zero=zero, per_node=per_node, here=here,
                   device=device)  # fmt: skip
    # A user's DeepSpeed file may move some of a GPU's state to the host.
    certain = room is not None and (options.engine_config is None or device.type == "cpu")
    refused = room.refusal() if room is not None and certain else ""
    warned = room.warning() if room is not None and not refused else ""
    blind = room.without_pictures() if room is not None and options.sample_every != 0 else ""
    refusals, *others = zip(*world.gather((refused, warned, blind)), strict=True)
    for refusal in filter(None, refusals):
        raise ConfigError(refusal)
    for texts in others:
        if text := next(filter(None, texts), ""):
            log.warning("%s", text)
    return not any(others[1])


def room_of(
    node: Node, config: Any, part: str, recipe: Recipe, options: Any, processes: int, *, zero: int, per_node: int,
    here: int, device: torch.device, free: int | None = None,
) -> Room | None:  # fmt: skip
    """Return what a stage needs and what is free, None where it cannot be planned; see `check_room`."""
    try:
        stage = stage_of(node, config, part, recipe.batch)
        job = job_of(
            batch=recipe.batch, accumulate=recipe.accumulate, devices=processes, per_node=per_node, zero=zero,
            shard=options.shard, precision=options.precision, reducer=options.reducer, storage="zoo",
            recompute=options.recompute,
        )  # fmt: skip
    except ZooError:
        return None
    gpu = device.type != "cpu"
    return Room(
        stage=attrs.evolve(stage, recipe=recipe),
        job=job,
        here=1 if gpu else here,
        free=free_here(device) if free is None else free,
        where=str(device) if gpu else MACHINE,
    )


def free_here(device: torch.device) -> int:
    """Return free bytes of a device; for a CPU what the system counts as available, or less where a limit is set.

    What this process has freed (an earlier stage's) and still holds is given back first.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return free_memory(device)
    give_back_freed_memory()
    return min(free_memory(device), limit_left())


def give_back_freed_memory() -> None:
    """Have glibc return freed blocks to the system, as `zoo.train.allocator` asks it not to; nothing elsewhere."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)


def limit_left(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the bytes that this process's control groups still allow; very many where nothing is limited.

    What is counted as used includes files that are only cached and would make room; those are left out.
    """
    found = [UNLIMITED]
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, names, path = line.split(":", 2)
        if names and "memory" not in names.split(","):
            continue
        # Version 2 has one tree, version 1 one for memory. Inside a container the path is often the host's.
        base = root / names
        most, now = ("memory.limit_in_bytes", "memory.usage_in_bytes") if names else ("memory.max", "memory.current")
        for folder in {base, *(base / path.strip("/"), *(base / path.strip("/")).parents)}:
            if folder.is_relative_to(base) and (folder / most).is_file():
                found.append(_left(folder, most, now))
    return min(found)


def _left(folder: Path, most: str, now: str) -> int:
    try:
        limit, used = (folder / most).read_text().strip(), int((folder / now).read_text())
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # not for us to read
        return UNLIMITED
    if not limit.isdigit() or int(limit) >= UNLIMITED:  # "max"
        return UNLIMITED
    cached = int(rows.get("total_inactive_file", rows.get("inactive_file", 0)))
    return max(0, int(limit) - used + cached)


def _gib(size: int) -> str:
    return f"{size / GIB:.3g}" if size < 1000 * GIB else f"{size / GIB:,.0f}"

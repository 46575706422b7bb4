"""`zoo.plan`: parameters, work, memory, traffic and time of a job before anything is built. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import attrs

from zoo import registry
from zoo.catalogue import catalogue
from zoo.config import Overrides
from zoo.cost import Cost
from zoo.errors import ConfigError
from zoo.interfaces import Traffic
from zoo.planning.buckets import DEFAULT, Buckets
from zoo.planning.devices import Device, device_of
from zoo.planning.jobs import Job, job_of
from zoo.planning.layout import Shard
from zoo.planning.memory import Memory, memory, sampling
from zoo.planning.stages import Stage, cost_of, parts_of, stage_of
from zoo.planning.traffic import Transfer, reduced, shards_of, transfers
from zoo.resolution import resolve_tree

UTILISATION = 0.4
"""Share of a device's peak that its products reach. Large transformers are trained at 0.3 to 0.55."""

MACHINES = 1 << 16
"""Most machines that are looked at for the smallest number."""


@attrs.frozen(kw_only=True)
class Seconds:
    """Time of one update on one device, by a roofline that is no more than this:

    products at `UTILISATION` of the peak; gathers and scatters hide behind them, or they behind those, whichever takes
    longer; then the mean between copies, and the update, which reads and writes the state once.
    """

    compute: float
    sharding: float
    """Gathers and scatters of parameters and gradients."""
    exchange: float
    """The mean over the copies of a shard."""
    update: float

    @property
    def total(self) -> float:
        """Time of one update."""
        return max(self.compute, self.sharding) + self.exchange + self.update


@attrs.frozen(kw_only=True)
class Smallest:
    """The fewest machines on which the job fits."""

    machines: int
    shard: Shard
    """What a copy is sharded over: "machine" or "all"."""


@attrs.frozen(kw_only=True)
class Plan:
    """What a training job takes."""

    name: str
    params: int
    """Parameters of the whole system."""
    parts: dict[str, int]
    """Parameters of each part, by role."""
    stage: Stage
    job: Job
    memory: Memory
    transfers: list[Transfer]
    reduced: Traffic | None
    rank: int | None
    """Rank of the widest matrices' gradients, where a reducer compresses them."""
    device: Device | None
    seconds: Seconds | None
    smallest: Smallest | None
    """None where no number of machines will do, or no device was named."""

    @property
    def flops(self) -> dict[str, int]:
        """FLOPs of one update on all devices: forward, backward (twice that), and what is recomputed."""
        cost, batch = self.stage.cost, self.job.batch
        again = cost.recomputed() if self.job.recompute else 0
        return {"forward": batch * cost.flops, "backward": 2 * batch * cost.flops, "recompute": batch * again}

    @property
    def sampling(self) -> int:
        """Bytes of a device while sample pictures are drawn, see `zoo.planning.memory.sampling`."""
        return sampling(self.stage, self.job)

    @property
    def fits(self) -> bool | None:
        """True where a device holds its share; None without a device."""
        return None if self.device is None else self.memory.total <= self.device.usable

    def json(self) -> dict[str, Any]:
        """Return plain data, as `zoo plan --json` prints it; bytes are of one device and one update."""
        job, cost, less = self.job, self.stage.cost, self.reduced
        return {
            "name": self.name,
            "params": self.params,
            "parts": self.parts,
            "stage": {"part": self.stage.part, "params": cost.params, "frozen": self.stage.frozen_params},
            "job": {
                **attrs.asdict(job),
                "machines": job.machines,
                "sharded_over": job.group,
                "samples_per_device": job.micro,
            },
            "flops_per_step": sum(self.flops.values()),
            "flops": {**self.flops, "frozen": job.batch * self.stage.encode},
            "memory_per_device": {**attrs.asdict(self.memory), "total": self.memory.total},
            "sampling_per_device": self.sampling,
            "traffic": {"inside": self.bytes_sent(between=False), "between": self.bytes_sent(between=True)},
            "saved": less.saved if less else 0.0,
            "saved_total": less.saved_total if less else 0.0,
            "rank": self.rank,
            "device": None if self.device is None else self.device.name,
            "fits": self.fits,
            "seconds_per_step": None if self.seconds is None else self.seconds.total,
            "seconds": None if self.seconds is None else attrs.asdict(self.seconds),
            "smallest": None if self.smallest is None else attrs.asdict(self.smallest),
        }

    def bytes_sent(self, *, between: bool) -> dict[str, int]:
        """Return the payload of one device's collectives, without and with compression, bytes."""
        found = [t for t in self.transfers if t.between == between]
        return {"dense": sum(t.dense for t in found), "sent": sum(t.sent for t in found)}


def plan(
    name: str,
    *,
    part: str | None = None,
    overrides: Overrides = (),
    device: str | None = None,
    batch: int | None = None,
    accumulate: int | None = None,
    reducer: str | None = None,
    buckets: Buckets = DEFAULT,
    **how: Any,
) -> Plan:
    """Plan the training of a system's stage, without torch and without building anything.

    Args:
        name: a card, an alias, or a run folder.
        part: the stage; None: that of the prior, the largest.
        overrides: as for `zoo.build`.
        device: "v100-16gb", "a100-80gb", "h100", "h200", or numbers, see `zoo.planning.devices`.
        batch, accumulate: samples of the global batch, and micro-batches; None: the recipe's.
        reducer: gradient reducer between machines, "powersgd", "powersgd-dalle:rank=128" ...
        buckets: sizes of DeepSpeed's buckets.
        how: `devices`, `per_node`, `zero`, `shard`, `precision`, `storage`, `recompute`, see
            `zoo.planning.jobs.job_of`.

    Raises:
        UnknownName: no such card, part, device, reducer or precision.
        ConfigError: something does not divide, is out of range, or contradicts something else.
    """
    node, config = resolve_tree(name, overrides)
    stage = stage_of(node, config, part, batch)
    job = job_of(
        batch=batch or stage.recipe.batch,
        accumulate=accumulate or stage.recipe.accumulate,
        reducer=reducer,
        buckets=buckets,
        **how,
    )
    card = None if device is None else device_of(device)
    _possible(stage, job, card)
    settings = None if job.reducer is None else registry.reducer_config(job.reducer)
    less = reduced(stage.cost, job, settings)
    parts = {role: cost_of(role, child, bound).params for role, child, bound in parts_of(node, config)}
    needs = memory(stage, job, less)
    moved = transfers(stage.cost, job, less)
    return Plan(
        name=catalogue().get(name).name if name in catalogue() else name,
        params=sum(parts.values()),
        parts=parts,
        stage=stage,
        job=job,
        memory=needs,
        transfers=moved,
        reduced=less,
        rank=_rank(stage.cost, job, settings),
        device=card,
        seconds=None if card is None else _seconds(stage, job, needs, moved, card),
        smallest=None if card is None else _smallest(stage, job, settings, card),
    )


def _possible(stage: Stage, job: Job, card: Device | None) -> None:
    """Refuse what no device or part can do."""
    if stage.cost.whole_batch and job.accumulate > 1:
        raise ConfigError(f"{stage.part}: its loss looks across the batch, so --accumulate must be 1")
    if job.precision == "resblock" and not stage.cost.blocks:
        raise ConfigError(f"{stage.part}: --precision resblock scales residual branches, and it has none")
    if card is not None and job.precision == "bf16" and not card.bf16:
        raise ConfigError(f"{card.name} has no bf16 arithmetic: take --precision fp16 or resblock")


def _rank(cost: Cost, job: Job, settings: Any) -> int | None:
    """Return the rank that a reducer gives the widest matrices: of those it tries, the one that sends as much."""
    if settings is None or job.copies == 1 or not hasattr(settings, "ranks"):
        return None
    shards = [shard for shard in shards_of(cost, job) if shard.matrix]
    if not shards:
        return None
    widest = max(shards, key=lambda shard: math.prod(shard.shape))
    sent = settings.cost([widest], job.copies).matrices
    for rank in settings.ranks(min(widest.shape[0], math.prod(widest.shape[1:]))):
        if sent and attrs.evolve(settings, rank=rank).cost([widest], job.copies).matrices == sent:
            return rank
    return None


def _seconds(stage: Stage, job: Job, needs: Memory, moved: list[Transfer], card: Device) -> Seconds | None:
    peak = card.flops(job.precision)
    if math.isnan(peak):
        return None
    cost = stage.cost
    flops = 3 * cost.flops + (cost.recomputed() if job.recompute else 0)
    link = {False: card.inside, True: card.between}
    times = {t.kind: 0.0 for t in moved}
    for t in moved:
        times[t.kind] += t.wire / link[t.between]
    return Seconds(
        compute=job.batch / job.devices * flops / (UTILISATION * peak),
        sharding=times.get("gather", 0.0) + times.get("scatter", 0.0),
        exchange=times.get("all-reduce", 0.0),
        update=2 * (needs.state - needs.frozen) / card.bandwidth,
    )


def _smallest(stage: Stage, job: Job, settings: Any, card: Device) -> Smallest | None:
    """Return the fewest machines that hold the job: sharded inside each, or over all devices where that takes fewer.

    A device has one sample at a time, the rest of its share being further micro-batches; where a batch may not be
    split, it has its whole share.
    """

    def fits(machines: int, shard: Shard) -> bool:
        devices = machines * job.per_node
        each = -(-job.batch // devices) if stage.cost.whole_batch else job.accumulate
        one = attrs.evolve(job, devices=devices, shard=shard, batch=devices * each)
        return memory(stage, one, reduced(stage.cost, one, settings)).total <= card.usable

    # A reducer has nothing to average where all devices share one copy.
    ways: tuple[Shard, ...] = ("machine", "all") if job.zero and settings is None else ("machine",)
    found = [(_fewest(lambda n, way=way: fits(n, way)), way) for way in ways]  # type: ignore[misc]
    fewest = min(((n, way) for n, way in found if n is not None), key=lambda item: item[0], default=None)
    return None if fewest is None else Smallest(machines=fewest[0], shard=fewest[1])


def _fewest(fits: Callable[[int], bool]) -> int | None:
    """Return the least number from which on `fits` is True; None: not up to `MACHINES`."""
    if not fits(MACHINES):
        return None
    low, high = 0, 1
    while not fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high

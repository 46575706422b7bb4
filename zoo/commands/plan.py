"""`zoo plan`: what a training job takes, before anything is built."""

from __future__ import annotations

import json
from typing import Any

import attrs
import click

from zoo.config import fields
from zoo.errors import ConfigError, suggest
from zoo.planning.buckets import Buckets
from zoo.planning.devices import DEVICES, GIB
from zoo.planning.jobs import PRECISIONS, STORAGES
from zoo.planning.layout import SHARDS
from zoo.planning.plan import UTILISATION, Plan
from zoo.planning.plan import plan as make_plan

COUNT = click.IntRange(1)


@click.command(context_settings={"max_content_width": 110})
@click.argument("name")
@click.option("--devices", type=COUNT, default=1, show_default=True, help="Devices in all.")
@click.option("--per-node", type=COUNT, help="Devices of a machine. Default: 8, or all where there are fewer.")
@click.option("--zero", type=click.IntRange(0, 3), help="ZeRO stage. Default: 3 on several devices, else 0.")
@click.option(
    "--shard", type=click.Choice(SHARDS), help="What ZeRO shards over. Default: machine for 3 and reducers, else all."
)
@click.option("--precision", type=click.Choice(PRECISIONS), help="Default: the storage's: fp32, fp16, resblock.")
@click.option("--reducer", help="Gradients between machines: none, powersgd, powersgd-dalle:rank=128 ...")
@click.option("--batch", type=COUNT, help="Samples of the global batch. Default: the recipe's.")
@click.option("--accumulate", type=COUNT, help="Micro-batches of a device's share. Default: the recipe's.")
@click.option("--storage", type=click.Choice(STORAGES), help="Default: zoo, or paper where gradients are compressed.")
@click.option(
    "--recompute/--no-recompute", default=None, help="Recompute residual branches. Default: unless storage zoo."
)
@click.option("--buckets", default="", metavar="FIELD=N,...", help="DeepSpeed's: reduce=20e6,prefetch=20e6 ...")
@click.option("--device", help=f"{', '.join(DEVICES)}, or memory=24e9,flops=80e12,inside=50e9,between=1e9.")
@click.option("--part", help="The stage to plan, such as codebook. Default: the prior's.")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="prior.depth=2, codebook=vqvae ...")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def plan(name: str, buckets: str, as_json: bool, **how: Any) -> None:
    """Plan the training of NAME: memory, FLOPs, traffic and time, without building anything.

    \b
    zoo plan dalle-12b --devices 1024 --per-node 8 --device v100-16gb --reducer powersgd-dalle
    zoo plan dalle-12b --devices 1024 --per-node 8 --device v100-16gb --storage deepspeed
    zoo plan dalle --devices 2 --zero 3 --precision fp32 --batch 64 --json
    """
    made = make_plan(name, buckets=buckets_of(buckets), **how)
    click.echo(json.dumps(made.json(), indent=1) if as_json else "\n".join(lines(made)))


def buckets_of(text: str) -> Buckets:
    """Return the buckets that "reduce=5e7,live=1e8" describes; what is not said keeps its default.

    Raises:
        ConfigError: a field is unknown, or its number is no positive whole one.
    """
    known, said = fields(Buckets), {}
    for item in filter(None, text.split(",")):
        name, _, number = item.partition("=")
        if name not in known:
            raise ConfigError(f"--buckets: '{name}' is no bucket{suggest(name, known)}; {', '.join(known)}")
        try:
            said[name] = int(float(number))
        except (ValueError, OverflowError):
            raise ConfigError(f"--buckets: {item} is not a number of values, such as {name}=20e6") from None
    try:
        return Buckets(**said)
    except ValueError as cause:
        raise ConfigError(f"--buckets: {cause.args[0]}") from None


def lines(made: Plan) -> list[str]:
    """Return a plan as text."""
    return [*_job(made), "", *_memory(made), "", *_traffic(made), "", *_work(made)]


def _job(made: Plan) -> list[str]:
    job, stage = made.job, made.stage
    machines = f"{job.machines} machine{'s' * (job.machines > 1)} of {job.per_node}"
    over = {0: "nothing sharded"}.get(job.zero, f"ZeRO {job.zero} over {job.group} device{'s' * (job.group > 1)}")
    branches = "recomputed" if job.recompute else "kept"
    split = f" in {job.accumulate} micro-batches" if job.accumulate > 1 else ""
    return [
        f"{'model':<10} {made.name}, {made.params:,} parameters",
        f"{'stage':<10} {stage.part}, {stage.cost.params:,} parameters; {stage.frozen_params:,} frozen beside them",
        f"{'devices':<10} {job.devices}, {machines}; {over}",
        f"{'numbers':<10} {job.precision}, storage {job.storage}, branches {branches}",
        f"{'batch':<10} {job.batch}, {job.micro} a device{split}",
    ]


def _memory(made: Plan) -> list[str]:
    unit, name = (GIB, "GiB") if made.memory.total >= GIB else (1 << 20, "MiB")
    kinds = {**{k: size for k, size in attrs.asdict(made.memory).items() if size}, "total": made.memory.total}
    rows = [f"  {kind:<18} {size / unit:>10.2f} {name}" for kind, size in kinds.items()]
    if made.device is not None:
        verdict = "fits" if made.fits else "DOES NOT FIT"
        rows[-1] += f"  of {made.device.usable / unit:.2f} on {made.device.name}: {verdict}"
        rows.append(f"  {'smallest':<18} {_smallest(made)}")
    if made.sampling:
        rows.append(f"  {'sampling':<18} {made.sampling / unit:>10.2f} {name} to draw pictures between updates")
    return ["memory of a device at its peak", *rows]


def _smallest(made: Plan) -> str:
    found = made.smallest
    if found is None:
        return "no number of machines will do" + _instead(made)
    over = "sharded inside each" if found.shard == "machine" else "sharded over all their devices"
    split = "" if made.stage.cost.whole_batch else ", one sample at a time"
    return f"{found.machines} machine{'s' * (found.machines > 1)}{split}, {over}"


def _instead(made: Plan) -> str:
    """Return what may help a job that fits nowhere."""
    job, ways = made.job, []
    if not job.recompute:
        ways.append("--recompute")
    if job.zero < 3:
        ways.append("--zero 3")
    if job.reducer is not None:
        ways.append("--shard all without the reducer")
    return f"; try {' or '.join(ways)}" if ways else ""


def _traffic(made: Plan) -> list[str]:
    rows = [f"{'traffic of a device and update':<32} {'dense':>12} {'sent':>12}"]
    for where, between in (("inside a machine", False), ("between machines", True)):
        sizes = made.bytes_sent(between=between)
        rows.append(f"  {where:<30} {_bytes(sizes['dense']):>12} {_bytes(sizes['sent']):>12}")
    if made.reduced is not None:
        rank = f", rank {made.rank}" if made.rank else ""
        rows.append(
            f"  {made.job.reducer} saves {100 * made.reduced.saved:.1f} % of the compressed matrices{rank}, "
            f"{100 * made.reduced.saved_total:.1f} % of all gradients"
        )
    return rows


def _work(made: Plan) -> list[str]:
    rows = [f"{'work of an update':<32} {sum(made.flops.values()):.3e} FLOPs"]
    rows += [f"  {kind:<30} {count:.3e}" for kind, count in made.flops.items() if count]
    if made.stage.encode:
        beside = made.job.batch * made.stage.encode
        rows.append(f"  {'frozen parts, if not stored':<30} {beside:.3e} beside it")
    if made.seconds is not None:
        each = attrs.asdict(made.seconds)
        said = ", ".join(f"{name} {seconds:.3g}" for name, seconds in each.items())
        rows.append(f"{'time of an update':<32} {made.seconds.total:.3g} s at {UTILISATION:.0%} of the peak ({said})")
    return rows


def _bytes(size: int) -> str:
    """Return bytes as 3.12 GB, powers of ten as links are sold."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.2f} {name}"
    return f"{size} B"

"""How a stage is to be trained: on how many devices, sharded how, in which numbers. Imports no torch.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, section 2.4 and appendices D, E
[2] S. Rajbhandari et al.: ZeRO: Memory Optimizations Toward Training Trillion Parameter Models. arXiv:1910.02054
"""

from __future__ import annotations

from typing import Any, Literal

import attrs

from zoo.cost import Widths
from zoo.errors import ConfigError, UnknownName
from zoo.planning.buckets import DEFAULT, Buckets
from zoo.planning.layout import SHARDS, Shard, check_reducer, processes_of_a_copy, shard_of

Precision = Literal["fp32", "bf16", "fp16", "resblock"]
Storage = Literal["zoo", "deepspeed", "paper"]

PRECISIONS = ("fp32", "bf16", "fp16", "resblock")
STORAGES = ("zoo", "deepspeed", "paper")


@attrs.frozen(kw_only=True)
class Job:
    """One training job; made and checked by `job_of`."""

    devices: int
    per_node: int
    """Devices of a machine."""
    zero: int
    """What is sharded [2]: 0 nothing, 1 the optimiser's state, 2 gradients too, 3 parameters too."""
    shard: Shard
    """Over which devices, at stages 1 to 3: those of a machine, as in [1], or all."""
    precision: Precision
    reducer: str | None
    """What averages gradients between copies, "name" or "name:settings"; None: the plain mean."""
    batch: int
    """Samples of the global batch."""
    accumulate: int
    """Micro-batches a device's share is split into."""
    storage: Storage
    """Which numbers are kept, and how a matrix is cut:

    "zoo": as this zoo trains. Weights, gradients and moments are fp32, and from ZeRO 1 on DeepSpeed keeps a second
    copy of the weights; what 16 bits make faster is cast in the forward pass; shards are flat runs of a parameter.
    "deepspeed": DeepSpeed's own mixed precision, 16-bit weights and gradients beside fp32 master weights and moments;
    in fp32 there is nothing to mix, and it is what "zoo" is.
    "paper": [1]'s scheme, 16-bit matrices and moments without an fp32 copy, the reducer's error buffer as gradient
    buffer, and fp32 for everything else.
    Where weights are in 16 bits, matrices are cut along their longer side, as in [1]."""
    recompute: bool
    """Residual branches are recomputed in the backward pass."""
    buckets: Buckets = DEFAULT

    @property
    def machines(self) -> int:
        """Number of machines."""
        return self.devices // self.per_node

    @property
    def group(self) -> int:
        """Devices that share a copy of the model: all that is sharded is sharded over these."""
        return processes_of_a_copy(self.zero, self.shard, self.per_node, self.devices)

    @property
    def shards(self) -> int:
        """Parts that each parameter is in."""
        return self.group if self.zero == 3 else 1

    @property
    def copies(self) -> int:
        """Copies of the model; devices that hold the same shard of each average gradients with each other."""
        return self.devices // self.group

    @property
    def micro(self) -> int:
        """Samples of one device's micro-batch."""
        return self.batch // (self.devices * self.accumulate)

    @property
    def half(self) -> bool:
        """True where the weights themselves are in 16 bits."""
        return self.storage != "zoo" and self.precision != "fp32"

    @property
    def casts(self) -> bool:
        """True where weights are fp32 and 16-bit copies are made of them as they are used."""
        return self.storage == "zoo" and self.precision != "fp32"

    @property
    def widths(self) -> Widths:
        """Bytes of a value that the forward pass keeps."""
        if self.precision == "fp32":
            return Widths(4, 4, 4)
        if self.precision == "resblock":  # fp32 identity path; branches read it in 16 bits, their norms compute in fp32
            return Widths(2, 4, 2)
        return Widths(4, 4, 2) if self.casts else Widths(2, 2, 2)


def job_of(
    *,
    batch: int,
    devices: int = 1,
    per_node: int | None = None,
    zero: int | None = None,
    shard: str | None = None,
    precision: str | None = None,
    reducer: str | None = None,
    accumulate: int = 1,
    storage: str | None = None,
    recompute: bool | None = None,
    buckets: Buckets = DEFAULT,
) -> Job:
    """Return a checked job; what is not said follows from the rest.

    Args:
        batch: samples of the global batch.
        devices: in all.
        per_node: devices of a machine; None: 8, or all where there are fewer.
        zero: None: 3 on several devices and with storage "paper", else 0.
        shard: "machine" or "all"; None: see `zoo.planning.layout.shard_of`.
        precision: None: "fp32" with storage "zoo", "fp16" with "deepspeed", "resblock" with "paper".
        reducer: None or "none": plain means.
        accumulate: micro-batches.
        storage: None: "zoo" without a reducer. With one, "paper", whose scheme it belongs to, where that agrees with
            `zero` and `precision`; else "deepspeed" in 16 bits and "zoo" in fp32.
        recompute: None: where weights are in 16 bits, as in [1].
        buckets: DeepSpeed's.

    Raises:
        UnknownName, ConfigError: a value is unknown, does not divide, or contradicts another.
    """
    reducer = None if reducer == "none" else reducer
    _known("precision", precision, PRECISIONS)
    _known("storage", storage, STORAGES)
    _known("shard", shard, SHARDS)
    per_node = min(8, devices) if per_node is None else per_node
    _machines(devices, per_node)
    if storage is None:
        storage = _storage(reducer, zero, precision)
    if precision is None:
        precision = {"zoo": "fp32", "deepspeed": "fp16", "paper": "resblock"}[storage]
    if zero is None:
        zero = 3 if devices > 1 or storage == "paper" else 0
    _agree(zero, precision, storage)
    over = shard_of(zero, shard, reducer)
    check_reducer(zero, processes_of_a_copy(zero, over, per_node, devices), reducer)
    _shares(batch, devices, accumulate)
    values: dict[str, Any] = {"precision": precision, "storage": storage}
    return Job(
        devices=devices,
        per_node=per_node,
        zero=zero,
        shard=over,
        reducer=reducer,
        batch=batch,
        accumulate=accumulate,
        recompute=storage != "zoo" and precision != "fp32" if recompute is None else recompute,
        buckets=buckets,
        **values,
    )


def _storage(reducer: str | None, zero: int | None, precision: str | None) -> str:
    if reducer is None or precision == "fp32" or zero not in (None, 3):
        return "zoo"
    return "paper" if precision in (None, "resblock") else "deepspeed"


def _known(what: str, said: str | None, known: tuple[str, ...]) -> None:
    if said is not None and said not in known:
        raise UnknownName(what, said, known, f"one of {', '.join(known)}")


def _machines(devices: int, per_node: int) -> None:
    if devices < 1 or per_node < 1:
        raise ConfigError(f"--devices and --per-node are at least 1, got {devices} and {per_node}")
    if devices % per_node:
        near = max(1, round(devices / per_node)) * per_node
        raise ConfigError(f"--devices {devices} make no whole machines of {per_node} (--per-node); take {near}")


def _agree(zero: int, precision: str, storage: str) -> None:
    if zero not in (0, 1, 2, 3):
        raise ConfigError(f"--zero is 0, 1, 2 or 3, got {zero}")
    if storage == "deepspeed" and precision != "fp32" and zero == 0:
        raise ConfigError(
            f"--storage deepspeed with --precision {precision} needs --zero 1, 2 or 3: at 0 DeepSpeed trains wrongly "
            "in half precision; --storage zoo does not"
        )
    if storage == "paper" and zero != 3:
        raise ConfigError(f"--storage paper shards the parameters, and --zero {zero} does not: take --zero 3")
    if storage == "paper" and precision != "resblock":
        raise ConfigError(
            f"--storage paper keeps matrices in 16 bits with a gradient scale a block, and --precision {precision} has "
            "none: take --precision resblock, or --storage deepspeed"
        )


def _shares(batch: int, devices: int, accumulate: int) -> None:
    if batch < 1 or accumulate < 1:
        raise ConfigError(f"--batch and --accumulate are at least 1, got {batch} and {accumulate}")
    share = devices * accumulate
    if batch % share:
        near = max(1, round(batch / share)) * share
        split = f" of {accumulate} micro-batches" if accumulate > 1 else ""
        raise ConfigError(f"--batch {batch} does not divide among {devices} devices{split}; take {near}")

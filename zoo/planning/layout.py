"""Which devices share a copy of the model in shards: one rule for `zoo plan` and for training. Imports no torch.

At ZeRO stage 0 every device is a copy. At stages 1 to 3 a copy is shared by the devices of a machine or by all, and
copies average their gradients: with a plain mean in fp32, or with a reducer.
"""

from __future__ import annotations

from typing import Literal, cast

from zoo.errors import ConfigError

Shard = Literal["machine", "all"]
SHARDS = ("machine", "all")


def shard_of(zero: int, shard: str | None, reducer: str | None) -> Shard:
    """Return what a copy is sharded over.

    Args:
        zero: ZeRO stage; at 0 nothing is sharded and the answer says nothing.
        shard: "machine", "all", or None: "machine" at stage 3 and where there is a reducer, which has nothing to do
            where all share one copy, else "all".
        reducer: what averages between copies; None: the plain mean.

    Raises:
        ConfigError: a reducer, and one copy for all.
    """
    if shard is None:
        return "machine" if zero == 3 or reducer is not None else "all"
    if zero and shard == "all" and reducer is not None:
        raise ConfigError(
            f"--reducer {reducer} averages between copies of the model, and with --shard all there is one copy: "
            "take --shard machine, or leave the reducer out"
        )
    return cast(Shard, shard)


def processes_of_a_copy(zero: int, shard: Shard, per_node: int, processes: int) -> int:
    """Return how many processes share a copy."""
    if zero == 0:
        return 1
    return per_node if shard == "machine" else processes


def check_reducer(zero: int, processes: int, reducer: str | None) -> None:
    """Refuse a reducer that would meet no matrices.

    Args:
        zero: ZeRO stage.
        processes: that share a copy.
        reducer: None: the plain mean, which takes anything.

    Raises:
        ConfigError: a copy is sharded in runs that cut through matrices.
    """
    if reducer is not None and zero in (1, 2) and processes > 1:
        raise ConfigError(
            f"--reducer {reducer} compresses matrices, and at --zero {zero} the {processes} processes of a copy hold "
            "runs of all parameters end to end, which cut through them: take --zero 3, --zero 0 or --per-node 1"
        )

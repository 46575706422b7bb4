"""Sizes of buckets, as the planner counts them and the engine sets them. Imports no torch.

DeepSpeed's own defaults (500 million values a bucket, a thousand million parameters kept live) are made for large
GPUs and would be most of the memory of anything smaller, so they are set here, and are an input of the plan.

[1] DeepSpeed 0.19.8, deepspeed/runtime/zero/config.py
"""

from __future__ import annotations

import attrs
from attrs import validators as v

MILLION = 1_000_000

MEAN = 1 << 24
"""Most values that the plain mean between copies sends in one go, unless one gradient has more."""


@attrs.frozen(kw_only=True)
class Buckets:
    """How many values (not bytes) DeepSpeed may hold beside a device's share of the model. [1]"""

    reduce: int = attrs.field(default=20 * MILLION, validator=v.ge(1))
    """`reduce_bucket_size`: gradients that are reduced in one go. The buffer is allocated whole at the start."""
    prefetch: int = attrs.field(default=20 * MILLION, validator=v.ge(0))
    """`stage3_prefetch_bucket_size`: parameters gathered ahead of their use."""
    live: int = attrs.field(default=50 * MILLION, validator=v.ge(0))
    """`stage3_max_live_parameters`: gathered parameters beyond which nothing is fetched ahead. Each layer fetches a
    bucket ahead, whether or not the last one is used up, so that this many are gathered most of the time."""
    reuse: int = attrs.field(default=20 * MILLION, validator=v.ge(0))
    """`stage3_max_reuse_distance`: a parameter needed again before so many others have been used is kept gathered."""
    persist: int = attrs.field(default=10_000, validator=v.ge(0))
    """`stage3_param_persistence_threshold`: smaller parameters are never partitioned away."""
    group: int = attrs.field(default=50 * MILLION, validator=v.ge(1))
    """`sub_group_size`: how much of the local share one step of the optimiser works on; its gradient is copied."""

    def within(self, params: int) -> Buckets:
        """Return the same sizes, none larger than a model of `params` parameters can use."""
        return Buckets(**{name: min(size, max(params, 1)) for name, size in attrs.asdict(self).items()})

    def zero_optimization(self) -> dict[str, int]:
        """Return the fields of a DeepSpeed JSON's `zero_optimization` that these are. [1]"""
        return {
            "reduce_bucket_size": self.reduce,
            "allgather_bucket_size": self.reduce + self.reduce % 2,  # refused if odd
            "stage3_prefetch_bucket_size": self.prefetch,
            "stage3_max_live_parameters": self.live,
            "stage3_max_reuse_distance": self.reuse,
            "stage3_param_persistence_threshold": self.persist,
            "sub_group_size": self.group,
        }


DEFAULT = Buckets()
"""What the engine sets and the planner counts unless told otherwise."""

"""What DeepSpeed is told of the processes: those that share a copy of the model are all it knows.

DeepSpeed calls such an object `mpu`. Between copies nothing is its business: gradients are averaged there by the
engine, between the backward pass and the step.
"""

from __future__ import annotations

from typing import Any

import attrs
from torch import distributed as dist

from zoo.train.copies import Copies


@attrs.frozen
class Machines:
    """One copy of the model as DeepSpeed's data-parallel world, by the names DeepSpeed 0.19.8 asks for."""

    copies: Copies

    def get_data_parallel_group(self) -> Any:
        """Return the processes of this copy."""
        return self.copies.inside

    def get_data_parallel_group_ranks(self) -> list[int]:
        """Return their ranks among all."""
        return dist.get_process_group_ranks(self.copies.inside)

    def get_data_parallel_world_size(self) -> int:
        """Return how many they are."""
        return self.copies.shards

    def get_data_parallel_rank(self) -> int:
        """Return this process's place among them."""
        return self.copies.shard

    def get_model_parallel_group(self) -> None:
        """Return None: no layer is split."""

    def get_model_parallel_world_size(self) -> int:
        """Return 1."""
        return 1

    def get_model_parallel_rank(self) -> int:
        """Return 0."""
        return 0

"""What this process holds of every parameter: a run of its flattened values, whatever the ZeRO stage.

Three ways of holding, one set of methods: `Whole` (stage 0), `Flat` (stages 1 and 2: a group's parameters are laid
end to end and cut into equal parts), `Split` (stage 3: every parameter is cut into equal parts).

What of DeepSpeed is read and written is here and nowhere else. Public: the `safe_*_local_*` functions (stage 3).
Not promised, and the reason for the pinned version: `param._hp_mapping`, `single_partition_of_fp32_groups`,
`fp32_partitioned_groups_flat`, `sub_group_to_group_id`, `update_lp_params`, `norm_for_param_grads`, `ds_tensor`.

[1] DeepSpeed 0.19.8, deepspeed/utils/tensor_fragment.py, deepspeed/runtime/zero/stage_1_and_2.py, stage3.py
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from zoo.train import adam16

Span = tuple[int, int]
"""First value and one past the last, in the flattened parameter."""


class Fragments(Protocol):
    """Runs of fp32 values of the parameters, by name. Gradients are views to write through.

    Moments and gradients are of parameters that are trained; one that is not has a weight alone.
    """

    split: bool
    """Whether each process holds a part of its own; else all hold the same."""

    def alike(self, name: str) -> bool:
        """Return whether all processes hold the same values of this parameter."""

    def span(self, name: str) -> Span:
        """Return which values this process holds."""

    def weight(self, name: str) -> Tensor:
        """Return the held values [length] of the weight that the optimiser updates."""

    def moment(self, name: str, kind: str) -> Tensor:
        """Return the held values [length] of one of the optimiser's moments."""

    def put(self, name: str, kind: str, values: Tensor) -> None:
        """Write the held values [length] of the weight (kind "weights") or of a moment; `publish` when all are."""

    def grad(self, name: str) -> Tensor:
        """Return the held part of the gradient, of any shape; after the last backward of an update."""

    def settle(self) -> None:
        """Take over gradients that were changed where `grad` returned copies."""

    def make_moments(self, updates: int) -> None:
        """Give the optimiser moments, as after so many updates, to write into."""

    def publish(self) -> None:
        """Bring weights that were written to all who use them."""

    def poison(self) -> None:
        """Have DeepSpeed's step find something that is not finite, and so change nothing."""

    def forget(self) -> None:
        """Clear what the last update's gradients left behind."""


def gather(values: Tensor, span: Span, shape: tuple[int, ...], group: Any, device: torch.device) -> Tensor:
    """Return, on a device that the group's backend knows, a whole tensor of which each process of the group holds a
    run, exactly."""
    flat = torch.zeros(math.prod(shape), dtype=torch.float32, device=device)
    flat[span[0] : span[1]] = values
    # As integers: sums with zero that keep every bit, also those of a negative zero.
    dist.all_reduce(flat.view(torch.int32), group=group)
    return flat.view(shape)


def _moments_of(optimizer: torch.optim.Optimizer, flats: Iterable[tuple[Tensor, int]], updates: int) -> None:
    """Give (weights, number of their group) moments of zero."""
    for flat, group in flats:
        packed = optimizer.param_groups[group].get("packed", False)
        optimizer.state[flat] = adam16.fresh(flat, packed=packed, updates=updates)


def _clear(flats: Iterable[Tensor]) -> None:
    for flat in flats:
        if flat.grad is not None:
            flat.grad.zero_()


class Whole:
    """Stage 0: the parameters themselves."""

    split = False

    def __init__(self, engine: Any, weights: Mapping[str, Any]) -> None:
        self.engine, self.weights = engine, weights

    def alike(self, name: str) -> bool:
        return True

    def span(self, name: str) -> Span:
        return 0, self.weights[name].numel()

    def weight(self, name: str) -> Tensor:
        return self.weights[name].data.view(-1)

    def moment(self, name: str, kind: str) -> Tensor:
        return self.engine.optimizer.state[self.weights[name]][kind].view(-1)

    def put(self, name: str, kind: str, values: Tensor) -> None:
        (self.weight(name) if kind == "weights" else self.moment(name, kind)).copy_(values)

    def grad(self, name: str) -> Tensor:
        p = self.weights[name]
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        return p.grad

    def settle(self) -> None:
        pass

    def make_moments(self, updates: int) -> None:
        optimizer = self.engine.optimizer
        flats = ((p, i) for i, group in enumerate(optimizer.param_groups) for p in group["params"])
        _moments_of(optimizer, flats, updates)

    def publish(self) -> None:
        pass

    def poison(self) -> None:
        pass  # the engine takes no step at this stage

    def forget(self) -> None:
        self.engine.zero_grad()


class Flat:
    """Stages 1 and 2: this process's part of each group's flat fp32 weights."""

    split = True

    def __init__(self, engine: Any, weights: Mapping[str, Any]) -> None:
        self.zero, self.weights = engine.optimizer, weights

    def alike(self, name: str) -> bool:
        return not self.weights[name].requires_grad

    def span(self, name: str) -> Span:
        if self.alike(name):
            return 0, self.weights[name].numel()
        mapping = self.weights[name]._hp_mapping
        if mapping is None:
            return 0, 0
        at = mapping.lp_fragment_address
        return at.start, at.start + at.numel

    def _nothing(self) -> Tensor:
        return torch.empty(0, device=self.zero.single_partition_of_fp32_groups[0].device)

    def weight(self, name: str) -> Tensor:
        if self.alike(name):
            return self.weights[name].data.view(-1)
        mapping = self.weights[name]._hp_mapping
        return self._nothing() if mapping is None else mapping.hp_fragment.data

    def moment(self, name: str, kind: str) -> Tensor:
        mapping = self.weights[name]._hp_mapping
        if mapping is None:
            return self._nothing()
        flat = self.zero.single_partition_of_fp32_groups[mapping.param_group_index]
        at = mapping.hp_fragment_address
        return self.zero.optimizer.state[flat][kind].narrow(0, at.start, at.numel)

    def put(self, name: str, kind: str, values: Tensor) -> None:
        (self.weight(name) if kind == "weights" else self.moment(name, kind)).copy_(values)

    def grad(self, name: str) -> Tensor:
        p = self.weights[name]
        return self._nothing() if p._hp_mapping is None else p._hp_mapping.get_lp_grad_fragment(p._index_in_param_group)

    def settle(self) -> None:
        pass

    def make_moments(self, updates: int) -> None:
        flats = ((flat, i) for i, flat in enumerate(self.zero.single_partition_of_fp32_groups))
        _moments_of(self.zero.optimizer, flats, updates)

    def publish(self) -> None:
        self.zero.update_lp_params()

    def poison(self) -> None:
        trained = (name for name, p in self.weights.items() if p.requires_grad)
        held = next((name for name in trained if self.span(name)[1]), None)
        if held is None:  # nothing but padding; another process will
            return
        self.grad(held).fill_(math.inf)
        if self.zero.cpu_offload:  # where norms were taken on the way to the CPU
            norms = self.zero.norm_for_param_grads
            norms[self.zero.get_param_id(self.weights[held])] = torch.tensor(math.inf)

    def forget(self) -> None:
        if self.zero.cpu_offload:  # else DeepSpeed makes them anew
            _clear(self.zero.single_partition_of_fp32_groups)


class Split:
    """Stage 3: this process's part of each parameter; the last parts are padded, and the padding is left out here."""

    split = True

    def __init__(self, engine: Any, weights: Mapping[str, Any]) -> None:
        from deepspeed import utils

        self.engine, self.zero, self.weights, self.api = engine, engine.optimizer, weights, utils
        self._grads: dict[str, Tensor] = {}

    def alike(self, name: str) -> bool:
        return False

    def span(self, name: str) -> Span:
        p = self.weights[name]
        part = p.ds_tensor.ds_numel
        start = min(dist.get_rank(p.ds_process_group) * part, p.ds_numel)
        return start, min(start + part, p.ds_numel)

    def _held(self, name: str, values: Tensor) -> Tensor:
        start, stop = self.span(name)
        return values.view(-1)[: stop - start]

    def weight(self, name: str) -> Tensor:
        p = self.weights[name]
        values = self.api.safe_get_local_fp32_param(p) if p.requires_grad else p.ds_tensor
        return self._held(name, values.data)

    def moment(self, name: str, kind: str) -> Tensor:
        return self._held(name, self.api.safe_get_local_optimizer_state(self.weights[name], kind))

    def put(self, name: str, kind: str, values: Tensor) -> None:
        p = self.weights[name]
        padded = torch.zeros_like(p.ds_tensor, dtype=values.dtype)
        padded[: len(values)] = values
        if not p.requires_grad:
            p.ds_tensor.data.copy_(padded)
        elif kind == "weights":
            self.api.safe_set_local_fp32_param(p, padded)
        else:
            self.api.safe_set_local_optimizer_state(p, padded, kind)

    def grad(self, name: str) -> Tensor:
        if name not in self._grads:
            self._grads[name] = self.api.safe_get_local_grad(self.weights[name])
        return self._held(name, self._grads[name])

    def settle(self) -> None:
        if self.zero.offload_optimizer:
            for name, values in self._grads.items():
                self.api.safe_set_local_grad(self.weights[name], values)

    def make_moments(self, updates: int) -> None:
        flats = enumerate(self.zero.fp32_partitioned_groups_flat)
        groups = self.zero.sub_group_to_group_id
        _moments_of(self.zero.optimizer, ((flat, groups[i]) for i, flat in flats), updates)

    def publish(self) -> None:
        self.engine.empty_partition_cache()  # what was gathered before is stale
        for p in self.weights.values():
            values = self.api.safe_get_local_fp32_param(p) if p.requires_grad else p.ds_tensor
            if values.data_ptr() != p.ds_tensor.data_ptr():
                p.ds_tensor.data.copy_(values.data)

    def poison(self) -> None:
        name = next(name for name, p in self.weights.items() if p.requires_grad)
        self._grads[name] = torch.full_like(self.api.safe_get_local_grad(self.weights[name]), math.inf)
        self.api.safe_set_local_grad(self.weights[name], self._grads[name])

    def forget(self) -> None:
        """Zero the buffers: a parameter without part in an update's loss would meet its last gradient again."""
        self._grads = {}
        if self.zero.offload_optimizer:
            _clear(self.zero.fp32_partitioned_groups_flat)
        else:
            self.zero.grad_partitions_flat_buffer.zero_()


def fragments(stage: int, engine: Any, weights: Mapping[str, Any]) -> Fragments:
    """Return the way of holding that belongs to a ZeRO stage."""
    kinds: dict[int, Any] = {0: Whole, 1: Flat, 2: Flat, 3: Split}
    return kinds[stage](engine, weights)

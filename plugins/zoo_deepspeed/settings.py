"""The JSON that DeepSpeed is given: what the command and the recipe say, and the user's own file. Imports no torch.

Weights are kept in fp32 and cast in the forward pass (see README.md), so DeepSpeed's own `fp16` and `bf16` sections
never reach it: of the user's, "enabled" must agree with --precision, and the rest sets up the loss scaler.

[1] DeepSpeed 0.19.8, deepspeed/runtime/config.py, deepspeed/runtime/zero/config.py
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from zoo.config import structure
from zoo.errors import ConfigError, suggest
from zoo.parts import Recipe
from zoo.planning.buckets import DEFAULT

if TYPE_CHECKING:
    from zoo.train.copies import Copies

REFUSED = {
    "optimizer": "the recipe decides the optimiser: --set PART.train.lr=...",
    "scheduler": "the recipe decides the learning rate: --set PART.train.schedule=...",
    "amp": "use --precision",
    "torch_autocast": "use --precision bf16 or fp16, which casts in the forward pass",
    "checkpoint": "checkpoints are the zoo's own: --save-every, --keep",
    "activation_checkpointing": "use --recompute",
    "data_types": "weights, gradients and their sums are fp32",
    "managed_gradient_accumulation": "the zoo tells DeepSpeed which backward is the last",
    "zero_optimization.zenflow": "it updates weights behind the step that skips what is not finite",
    "zero_optimization.zero_quantized_weights": "weights are fp32",
    "zero_optimization.zero_hpz_partition_size": "use --per-node",
    "zero_optimization.compute_grad_norm": "the zoo clips by the whole norm",
}
"""What a user's file may not hold, and what to do instead."""

SECTIONS = (
    "train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping", "fp16",
    "bf16", "zero_optimization", "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "steps_per_print",
    "dump_state", "disable_python_gc", "disable_allgather", "communication_data_type",
    "seq_parallel_communication_data_type", "prescale_gradients", "gradient_predivide_factor", "gradient_allreduce_op",
    "sparse_gradients", "comms_logger", "tensorboard", "wandb", "csv_monitor", "comet", "flops_profiler",
    "wall_clock_breakdown", "memory_breakdown", "timers", "aio", "compile", "dataloader_drop_last", "log_level",
)  # fmt: skip
"""What a user's file may hold besides; DeepSpeed itself is silent about a mistyped name [1]."""

ZERO = (
    "stage", "contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce",
    "allgather_partitions", "allgather_bucket_size", "overlap_comm", "offload_param", "offload_optimizer",
    "sub_group_size", "round_robin_gradients", "ignore_unused_parameters", "leaf_module", "memory_efficient_linear",
    "override_module_apply", "parameter_alignment", "log_trace_cache_warnings", "enable_sanity_checks",
    "zero_quantized_gradients", "zero_quantized_nontrainable_weights", "prefetch_bucket_size",
    "param_persistence_threshold", "model_persistence_threshold", "max_live_parameters", "max_reuse_distance",
    "module_granularity_threshold", "use_all_reduce_for_fetch_params", "allgather_sequential",
    "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_model_persistence_threshold",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_module_granularity_threshold",
    "stage3_use_all_reduce_for_fetch_params", "stage3_allgather_sequential",
)  # fmt: skip
"""What its `zero_optimization` may hold."""

_OBJECTS = ("fp16", "bf16", "zero_optimization", "offload_param", "offload_optimizer")


@attrs.frozen(kw_only=True)
class LossScaler:
    """DeepSpeed's dynamic loss scaling, by the names and defaults of its `fp16` section [1]."""

    loss_scale: float = 0.0
    """A fixed scale; 0: dynamic."""
    initial_scale_power: int = 16
    """Begins at 2 to this."""
    loss_scale_window: int = 1000
    """Updates without overflow after which it doubles."""
    hysteresis: int = 2
    """Overflows until it halves."""
    consecutive_hysteresis: bool = False
    """An update without overflow restores the hysteresis."""
    min_loss_scale: float = 1.0
    """Never below this."""


@attrs.frozen
class Own:
    """The user's DeepSpeed JSON, as far as it says anything."""

    path: Path | None = None
    data: Mapping[str, Any] = attrs.field(factory=dict)

    @property
    def stage(self) -> int | None:
        """The ZeRO stage it asks for."""
        return self.data.get("zero_optimization", {}).get("stage")

    @property
    def offloads(self) -> bool:
        """Whether parameters or the optimiser's state lie on the CPU."""
        zero = self.data.get("zero_optimization", {})
        return any(zero.get(name, {}).get("device") == "cpu" for name in ("offload_param", "offload_optimizer"))

    def scaler(self) -> LossScaler:
        """Return the loss scaler it describes, DeepSpeed's default where it does not.

        Raises:
            ConfigError: an unknown field.
        """
        said = {k: x for k, x in self.data.get("fp16", {}).items() if k not in ("enabled", "auto_cast")}
        return structure(said, LossScaler, where=f"{self.path}: fp16")


def read(path: Path | None, precision: str, zero: int | None) -> Own:
    """Return the user's file, checked against the command.

    Raises:
        ConfigError: it cannot be read, holds what the zoo decides, or contradicts a flag; names both.
    """
    if path is None:
        return Own()
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable DeepSpeed JSON ({error})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a DeepSpeed JSON is an object, not {type(data).__name__}")
    for where, x in (("", data), ("zero_optimization.", data.get("zero_optimization", {}))):
        for name in x if isinstance(x, dict) else ():
            if name in _OBJECTS and not isinstance(x[name], dict):
                raise ConfigError(f"{path}: '{where}{name}' is an object in braces, not {json.dumps(x[name])}")
    flat = dict(_leaves(data))
    for name, reason in REFUSED.items():
        if any(key == name or key.startswith(f"{name}.") for key in flat):
            raise ConfigError(f"{path}: '{name}' cannot be set here: {reason}")
    _check_names(path, data, "", SECTIONS)
    _check_names(path, data.get("zero_optimization", {}), "zero_optimization.", ZERO)
    for name in ("offload_param", "offload_optimizer"):
        if flat.get(f"zero_optimization.{name}.device") == "nvme":
            raise ConfigError(f"{path}: 'zero_optimization.{name}.device' can be cpu; nvme is not supported")
    said = {name for name in ("fp16", "bf16") if data.get(name, {}).get("enabled") is True}
    if said - {precision} and precision != "fp32":
        raise ConfigError(f"{path} enables {', '.join(sorted(said))} and the command says --precision {precision}")
    if said and precision == "fp32":
        raise ConfigError(f"{path} enables {', '.join(sorted(said))}: add --precision {min(said)}, or take it out")
    stage = flat.get("zero_optimization.stage")
    if stage not in (None, "auto", 0, 1, 2, 3) or isinstance(stage, bool):
        raise ConfigError(f"{path}: 'zero_optimization.stage' is 0, 1, 2 or 3, not {json.dumps(stage)}")
    if zero is not None and stage not in (None, "auto", zero):
        raise ConfigError(f"{path} says zero_optimization.stage={stage} and the command --zero {zero}")
    return Own(path, data)


def _check_names(path: Path, data: Mapping[str, Any], where: str, known: Collection[str]) -> None:
    for name in data:
        if name not in known:
            raise ConfigError(f"{path}: {where}{name}: no such field{suggest(name, known)}")


def _leaves(data: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted name, value) of every leaf."""
    for name, x in data.items():
        path = f"{where}.{name}".strip(".")
        if isinstance(x, Mapping):
            yield from _leaves(x, path)
        else:
            yield path, x


def stage_of(options: Any, own: Own) -> int:
    """Return the ZeRO stage: the command's, else the file's, else 1, which sends what 0 sends and holds less."""
    if options.zero is not None:
        return options.zero
    return own.stage if isinstance(own.stage, int) else 1


def building(stage: int, own: Own, processes: int) -> dict[str, Any]:
    """Return the JSON with which a partitioned model is built: neither its size nor a batch is known yet."""
    return compose(stage, own, batch=processes, pieces=1, processes=processes, params=1 << 62)


def training(stage: int, own: Own, recipe: Recipe, copies: Copies, params: int) -> dict[str, Any]:
    """Return the JSON with which a stage is trained.

    Args:
        stage: of ZeRO.
        own: the user's file.
        recipe: whose batch is the whole one.
        copies: of the model. DeepSpeed knows of one, and of that one's share of the batch.
        params: parameters of the model; no bucket is larger.

    Raises:
        ConfigError: the file contradicts the recipe.
    """
    refuse_contradiction(own, recipe, copies)
    batch = recipe.batch // copies.count
    return compose(stage, own, batch=batch, pieces=recipe.accumulate, processes=copies.shards, params=params)


def refuse_contradiction(own: Own, recipe: Recipe, copies: Copies) -> None:
    """Raise ConfigError where the user's file says another batch or clipping than the recipe; names both."""
    names = {
        "train_batch_size": "--batch", "train_micro_batch_size_per_gpu": "--batch and --accumulate",
        "gradient_accumulation_steps": "--accumulate", "gradient_clipping": "PART.train.clip",
    }  # fmt: skip
    numbers = _numbers(recipe.batch, recipe.accumulate, copies.shards * copies.count)
    for name, value in {**numbers, "gradient_clipping": recipe.clip or 0.0}.items():
        said = own.data.get(name, "auto")
        if said not in ("auto", value):
            raise ConfigError(f"{own.path} says {name}={said} and the run has {value} ({names[name]})")


def _numbers(batch: int, pieces: int, processes: int) -> dict[str, int]:
    return {
        "train_batch_size": batch,
        "train_micro_batch_size_per_gpu": batch // (pieces * processes),
        "gradient_accumulation_steps": pieces,
    }


def compose(stage: int, own: Own, *, batch: int, pieces: int, processes: int, params: int) -> dict[str, Any]:
    """Return the merged JSON of one copy of the model, `batch` being its share."""
    numbers = {**_numbers(batch, pieces, processes), "gradient_clipping": 0.0}  # the engine clips, after reduction
    left = {k: x for k, x in own.data.items() if k not in (*numbers, "fp16", "bf16", "zero_optimization")}
    zero = {k: x for k, x in own.data.get("zero_optimization", {}).items() if x != "auto"}
    return {
        "zero_force_ds_cpu_optimizer": False,  # with offload: the recipe's own optimiser runs on the CPU
        "zero_allow_untested_optimizer": True,  # Adam with moments of 16 bits is a class of the zoo's
        **left,
        **numbers,
        "zero_optimization": {**DEFAULT.within(params).zero_optimization(), **zero, "stage": stage},
    }

"""The engine: one process or many, ZeRO stages 0 to 3, on DeepSpeed.

Weights are fp32 at every stage and in every precision, and what is faster in 16 bits is cast in the forward pass, as
in the core's own engine; so both train alike, norms and heads that a model keeps in fp32 stay so, and DeepSpeed's own
16-bit optimisers, one of which trains wrongly (README.md), are never used.

The step is ours up to the optimiser: unscale, reduce between machines, one norm and one flag over all processes, clip;
then DeepSpeed steps, or, made to find an infinity, skips.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.errors import ConfigError
from zoo.files import atomic_text
from zoo.interfaces import Batch, Grad, Losses
from zoo.parts import Recipe
from zoo.rng import Rng
from zoo.train import group, optim, reduction, resblock
from zoo.train.copies import copies
from zoo.train.ema import Ema
from zoo.train.ending import Buffers, Ending
from zoo.train.engine import block_names, refuse_accumulation
from zoo.train.shards import MOMENTS, Piece, Shards, whole, write
from zoo.train.stage import Stage
from zoo.weights import Lazy
from zoo_deepspeed import settings
from zoo_deepspeed.building import Partitioned, lengthen
from zoo_deepspeed.cast import Cast, LossScale
from zoo_deepspeed.fragments import fragments, gather
from zoo_deepspeed.machines import Machines
from zoo_deepspeed.start import deepspeed, refuse_wrong_values
from zoo_deepspeed.version import check_version

log = logging.getLogger("zoo.train")


class DeepSpeedEngine:
    """See the module. Another stage may be prepared when one is done.

    Args:
        options: `TrainOptions`, of which `precision`, `zero`, `shard`, `per_node`, `reducer`, `engine_config` and
            `timeout` are read.

    Raises:
        ConfigError: the user's file or an option cannot be; a port is in use.
    """

    def __init__(self, options: Any) -> None:
        self.world, self.device = group.meet(options.timeout), group.device()
        check_version()
        self._precision = options.precision
        self._own = settings.read(options.engine_config, options.precision, options.zero)
        self.zero = settings.stage_of(options, self._own)
        self._copies = copies(self.world, self.zero, options)
        self._options = options
        self._check_offload()
        if self._own.path is not None:
            said = settings.building(self.zero, self._own, self._copies.shards)
            refuse_wrong_values(self._own.path, said, Machines(self._copies))
        self._ds: Any = None

    def _check_offload(self) -> None:
        """Raise ConfigError where gradients lie where they cannot be sent from."""
        if self._copies.count > 1 and self.device.type == "cuda" and self._own.offloads:
            raise ConfigError(
                f"{self._own.path} offloads to the CPU, from where gradients are not averaged between machines: take "
                "offload_optimizer and offload_param out, or --shard all without --reducer"
            )

    def check(self, recipe: Recipe) -> None:
        """Refuse, before anything is written, a recipe that the user's file contradicts.

        Raises:
            ConfigError: names both; or the file describes no loss scaler.
        """
        settings.refuse_contradiction(self._own, recipe, self._copies)
        if self._precision == "fp16":
            self._own.scaler()

    def building(self) -> AbstractContextManager[Any]:
        """Return the context in which trained parts are constructed: partitioned at stage 3."""
        if self.zero < 3:
            return nullcontext()
        return Partitioned(settings.building(self.zero, self._own, self._copies.shards), Machines(self._copies))

    def prepare(self, stage: Stage, recipe: Recipe, *, steps: int) -> None:
        """Take the stage and make its optimiser; weights already in the stage are where training starts.

        Raises:
            ConfigError: the recipe accumulates gradients of a part whose loss needs the whole batch, the precision is
                "resblock" and no part has a residual branch, or the user's file contradicts the recipe.
        """
        refuse_accumulation(stage, recipe)
        self._close()
        self.stage, self.recipe, self.steps = stage.train(), recipe, steps
        for buffer in stage.buffers():  # DeepSpeed leaves those of a partitioned module where they are
            buffer.data = buffer.data.to(self.device)
        resblock.detach(stage)
        self._held: dict[str, Any] = dict(stage.named_parameters())
        for p in self._held.values():
            if not hasattr(p, "ds_id"):
                lengthen(p)
        self._weights = {name: p for name, p in self._held.items() if p.requires_grad}
        self._blocks = block_names(stage)
        self._updates = self._step = 0
        self._ds = self._initialize(stage, recipe) if self._weights else None
        self._fragments = fragments(self.zero if self._ds is not None else 0, self._ds, self._held)
        self._loss_scale = LossScale(self._own.scaler()) if self._precision == "fp16" else None
        self._ending = Ending(
            world=self.world, copies=self._copies, reducer=reduction.make_reducer(self._options), clip=recipe.clip,
            scales=resblock.Scales(stage, workers=self.world.size) if self._precision == "resblock" else None,
            loss_scale=self._loss_scale,
        )  # fmt: skip
        self._buffers = Buffers(stage)
        self._ema = (
            Ema(self._local(), recipe.ema, recipe.ema_every, recipe.ema_device) if recipe.ema is not None else None
        )
        self._begin()

    def _initialize(self, stage: Stage, recipe: Recipe) -> Any:
        """Return DeepSpeed's own engine."""
        count = sum(getattr(p, "ds_numel", p.numel()) for p in self._held.values())
        said = settings.training(self.zero, self._own, recipe, self._copies, count)
        model = Cast(stage, self._precision, self.device, keep=self.zero < 3)
        made, *_ = deepspeed().initialize(
            model=model, optimizer=optim.optimizer(stage, recipe), config=said, dist_init_required=False,
            mpu=Machines(self._copies),
        )  # fmt: skip
        return made

    def _close(self) -> None:
        """Let go of the stage before."""
        if self._ds is not None:
            self._ds.destroy()
            self._ds = None

    def _local(self) -> dict[str, Tensor]:
        """Return the held values of what is trained."""
        return {name: self._fragments.weight(name) for name in self._weights}

    def _begin(self) -> None:
        """Forget what belonged to the last update."""
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        self._buffers.forget()
        self._piece = 0
        if self._ds is not None:
            self._fragments.forget()

    def __call__(self, batch: Batch, step: int, rng: Rng) -> Losses:
        """Return the losses of this process's share of one micro-batch of update `step`."""
        self._step, self._piece = step, self._piece + 1
        self._buffers.keep()
        if self._ds is None:
            return self.stage(batch, step, rng)
        self._ds.set_gradient_accumulation_boundary(self._piece == self.recipe.accumulate)
        return self._ds(batch, step, rng)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's mean loss to that of the whole batch, over all processes."""
        self._finite &= torch.isfinite(loss.detach())
        if self._ds is not None and loss.requires_grad:
            self._ds.backward(loss if self._loss_scale is None else loss * self._loss_scale.value)

    def gradients(self) -> Iterator[Grad]:
        """Yield what this process holds of every gradient of its copy, in the order of construction."""
        for name in self._weights:
            shape = self._shape(name)
            block = self._blocks.get(name)
            matrix = len(shape) >= 2 and (block is not None or not self._blocks)
            yield Grad(name, self._fragments.grad(name), shape, 0 if self._fragments.split else None, block, matrix)

    def step(self) -> dict[str, float]:
        """Update the weights, or skip the update on every process when a loss or a gradient is not finite on any.

        Returns:
            "lr", and what `zoo.train.ending` returns; in fp16 "loss_scale" too.
        """
        lr = optim.rate(self.recipe, self._step, self.steps)
        if self.device.type == "cuda" and self._own.offloads:
            torch.cuda.synchronize()  # gradients may still be on their way to the CPU
        grads = list(self.gradients()) if self._ds is not None else []
        made = self._ending.end(
            grads, self._finite, alike=not self._fragments.split, update=partial(self._update, lr), skip=self._skip
        )
        self._begin()
        return {"lr": lr, **made}

    def _update(self, lr: float) -> None:
        self._updates += 1
        if self._ds is None:
            return
        self._fragments.settle()
        for params in self._ds.optimizer.param_groups:
            params["lr"] = lr * params["scale"]
        self._ds.step()
        if not self._ds.was_step_applied():
            raise RuntimeError(f"DeepSpeed skipped update {self._step + 1}, whose gradient is finite")
        if self._ema is not None:
            self._ema.weights = self._local()
            self._ema.update(self._updates)

    def _skip(self) -> None:
        """Put buffers back, and have DeepSpeed go through a step in which it changes nothing."""
        self._buffers.put_back()
        if self._ds is not None and self.zero > 0:
            self._fragments.poison()
            self._ds.step()

    def _shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of the whole parameter, as files have it."""
        p = self._held[name]
        return () if hasattr(p, "is_scalar") else optim.whole_shape(p)

    def _whole(self, name: str, held: Tensor) -> Tensor:
        """Return a whole tensor of which this process holds a run."""
        if self._fragments.alike(name) or self._copies.shards == 1:
            return held.view(self._shape(name))
        return gather(held, self._fragments.span(name), self._shape(name), self._copies.inside, self.device)

    def _kept(self, name: str) -> Tensor:
        """Return a whole parameter as it is to be kept: its average where there is one."""
        average = self._ema.average if self._ema is not None else {}
        return self._whole(name, average[name] if name in average else self._fragments.weight(name))

    def weights(self) -> dict[str, Lazy]:
        """Return the stage's tensors as they are to be kept, each fetched whole, by all processes together."""
        tensors = {}
        for name, x in self.stage.state_dict(keep_vars=True).items():
            if name in self._held:
                tensors[name] = Lazy(self._shape(name), x.dtype, partial(self._kept, name))
            else:
                tensors[name] = Lazy(tuple(x.shape), x.dtype, x.detach)
        return tensors

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the trained parts hold, whole on every process, the averaged weights, or the weights as they are."""
        if self._ds is None:
            yield
        elif self.zero == 3:
            from zoo_deepspeed.unsharded import unsharded

            with unsharded(self._ds):
                for name, p in self._weights.items() if self._ema is not None else ():
                    p.data = self._kept(name).view(p.ds_shape).to(self.device)  # the average may be on the CPU
                yield
        elif self._ema is None:
            yield
        else:
            before = {} if self.zero else {name: p.data.clone() for name, p in self._weights.items()}
            for name, p in self._weights.items():
                p.data.copy_(self._kept(name))
            try:
                yield
            finally:
                for name, x in before.items():
                    self._weights[name].data.copy_(x)
                self._fragments.publish()

    def save(self, folder: Path) -> None:
        """Write this process's pieces: weights and buffers, optimiser, average, reducer; the first process: scales,
        updates. All take part; those of the first copy write."""
        parts = self._fragments
        pieces = reduction.state_pieces(self._ending.reducer, self._copies, parts.span, self._shape)
        if self._copies.copy > 0:
            return
        for name in self._held:
            if not parts.alike(name) or self.world.rank == 0:
                pieces |= self._pieces(name)
        if self.world.rank == 0:
            rest = self.stage.state_dict().items()
            pieces |= {f"weights:{name}": whole(x) for name, x in rest if name not in self._held}
        write(folder, self._copies.shard, self._copies.shards, pieces)
        if self.world.rank == 0:
            atomic_text(folder / "engine.json", json.dumps(self._said()))

    def _pieces(self, name: str) -> dict[str, Piece]:
        """Return what this process holds of a parameter and of what belongs to it."""
        parts, trained = self._fragments, name in self._weights
        values = {"weights": parts.weight(name)}
        if trained and self._updates and self._ds is not None:
            values |= {kind: parts.moment(name, kind) for kind in MOMENTS}
        if trained and self._ema is not None:
            values["average"] = self._ema.average[name]
        start, stop = parts.span(name)
        if start == stop and self._held[name].numel() + getattr(self._held[name], "ds_numel", 0) > 0:
            return {}
        return {f"{kind}:{name}": Piece(x, start, self._shape(name)) for kind, x in values.items()}

    def _said(self) -> dict[str, Any]:
        said: dict[str, Any] = {"engine": "deepspeed", "zero": self.zero, "processes": self.world.size,
                                "updates": self._updates}  # fmt: skip
        if self._ending.scales is not None:
            said["scales"] = self._ending.scales.state_dict()
        if self._loss_scale is not None:
            said["loss_scale"] = self._loss_scale.state_dict()
        return said

    def load(self, folder: Path) -> None:
        """Go on from what `save` of any engine wrote, with any number of processes at any stage.

        Raises:
            BadRun: it is of another model or recipe.
        """
        said, parts = json.loads((folder / "engine.json").read_text()), self._fragments
        self._updates = said["updates"]
        if self._updates and self._ds is not None:
            parts.make_moments(self._updates)
        with Shards(folder) as found, torch.no_grad():
            for name in self._held:
                for key, piece in self._pieces(name).items():
                    kind, values = key.partition(":")[0], found.read(key, *parts.span(name))
                    if kind == "average":
                        piece.values.copy_(values)
                    else:
                        parts.put(name, kind, values)
            for name, x in self.stage.state_dict(keep_vars=True).items():
                if name not in self._held:
                    x.copy_(found.tensor(name))
            state = reduction.state_from(found, self._copies, parts.span)
            if state:
                self._ending.reducer.load_state_dict(state)
        if self._ds is not None:
            parts.publish()
        if self._ending.scales is not None and "scales" in said:  # weights to begin with have none
            self._ending.scales.load_state_dict(said["scales"])
        if self._loss_scale is not None and "loss_scale" in said:
            self._loss_scale.load_state_dict(said["loss_scale"])
        self._begin()

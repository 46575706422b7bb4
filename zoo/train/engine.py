"""The built-in engine: plain torch, one process, or several that each hold the whole model.

An engine owns the wrapped stage, the optimiser, the average of the weights and the step. The loop knows engines by
the `Engine` interface alone, so that a plugin's engine (sharded, distributed) takes this one's place by name.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.interfaces import Batch, Grad, Losses
from zoo.nn.residual import residuals
from zoo.parts import Recipe
from zoo.rng import Rng
from zoo.train import group, optim, reduction, resblock
from zoo.train.copies import copies
from zoo.train.ema import Ema
from zoo.train.ending import Buffers, Ending
from zoo.train.shards import MOMENTS, Shards, whole, write
from zoo.train.stage import Stage
from zoo.train.world import World
from zoo.weights import Lazy

log = logging.getLogger("zoo.train")


def check(options: Any) -> None:
    """Refuse what needs another engine.

    Raises:
        ConfigError: the text names the option and the engine that has it.
    """
    if options.zero is not None:
        raise ConfigError("--zero shards a model, which this engine cannot: say --engine deepspeed")
    if options.shard is not None:
        raise ConfigError("--shard says what a model is sharded over, and this engine does not: say --engine deepspeed")
    if options.precision == "fp16":
        raise ConfigError(
            "--precision fp16 scales the loss, which engine 'torch' does not: "
            "add --engine deepspeed, or use fp32, bf16 or resblock"
        )


class TorchEngine:
    """Weights in fp32, whole on every process. "bf16": the forward is autocast. "resblock": residual branches in fp16.

    Args:
        options: `TrainOptions`, of which this engine reads `precision`, `reducer`, `per_node`, `seed` and `timeout`.
        device: where to train; None: this process's CUDA device, else torch's default device.

    Raises:
        ConfigError: an option that needs another engine.
    """

    zero = 0

    def __init__(self, options: Any, *, device: str | torch.device | None = None) -> None:
        check(options)
        several = group.processes() > 1
        self.world: Any = group.meet(options.timeout) if several else World()
        default = group.device() if several or torch.cuda.is_available() else torch.get_default_device()
        self.device = torch.device(device if device is not None else default)
        self._copies = copies(self.world, 0, options)
        self._options = options
        self._bf16 = options.precision == "bf16"
        self._resblock = options.precision == "resblock"

    def building(self) -> AbstractContextManager[Any]:
        """Return the context in which trained parts are constructed: nothing special here."""
        return nullcontext()

    def prepare(self, stage: Stage, recipe: Recipe, *, steps: int) -> None:
        """Take the stage and make its optimiser; weights already in the stage are where training starts.

        Raises:
            ConfigError: the recipe accumulates gradients of a part whose loss needs the whole batch, or the precision
                is "resblock" and no part has a residual branch.
        """
        refuse_accumulation(stage, recipe)
        self.stage, self.recipe, self.steps = stage.to(self.device).train(), recipe, steps
        resblock.detach(stage)
        self._ending = Ending(
            world=self.world, copies=self._copies, reducer=reduction.make_reducer(self._options), clip=recipe.clip,
            scales=resblock.Scales(stage, workers=self.world.size) if self._resblock else None,
        )  # fmt: skip
        self._buffers = Buffers(stage)
        self._weights = optim.parameters(stage)
        self._names = {id(p): name for name, p in self._weights.items()}
        self._blocks = block_names(stage)
        self._optimizer = optim.optimizer(stage, recipe)
        self._ema = (
            Ema(self._weights, recipe.ema, recipe.ema_every, recipe.ema_device) if recipe.ema is not None else None
        )
        self._updates = 0
        self._step = 0
        self._begin()

    @property
    def scales(self) -> resblock.Scales | None:
        """The gradient scales of resblock precision."""
        return self._ending.scales

    def _begin(self) -> None:
        """Forget what belonged to the last update."""
        self._finite = torch.ones((), dtype=torch.bool, device=self.device)
        self._buffers.forget()
        if self._optimizer is not None:
            self._optimizer.zero_grad(set_to_none=True)

    def __call__(self, batch: Batch, step: int, rng: Rng) -> Losses:
        """Return the losses of one micro-batch of update `step`."""
        self._step = step
        self._buffers.keep()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            return self.stage(batch, step, rng)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of one micro-batch's mean loss to that of the whole batch."""
        self._finite &= torch.isfinite(loss.detach())
        if loss.requires_grad:
            (loss / self.recipe.accumulate).backward()

    def gradients(self) -> Iterator[Grad]:
        """Yield every gradient in the order of construction; a parameter that had no part in the loss has zeros."""
        for name, p in self._weights.items():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            block = self._blocks.get(name)
            matrix = p.ndim >= 2 and (block is not None or not self._blocks)
            yield Grad(name, p.grad, tuple(p.shape), None, block, matrix)

    def step(self) -> dict[str, float]:
        """Update the weights, or skip the update when a loss or a gradient is not finite.

        Returns:
            "lr", and what `zoo.train.ending` returns.
        """
        lr = optim.rate(self.recipe, self._step, self.steps)
        made = self._ending.end(
            list(self.gradients()), self._finite, alike=True, update=functools.partial(self._update, lr),
            skip=self._buffers.put_back,
        )  # fmt: skip
        self._begin()
        return {"lr": lr, **made}

    def _update(self, lr: float) -> None:
        self._updates += 1
        if self._optimizer is None:
            return
        for params in self._optimizer.param_groups:
            params["lr"] = lr * params["scale"]
        self._optimizer.step()
        if self._ema is not None:
            self._ema.update(self._updates)

    def averaged(self) -> AbstractContextManager[None]:
        """Return a context in which the trained parts hold the averaged weights, where there is an average."""
        return nullcontext() if self._ema is None else self._ema.swapped()

    def weights(self) -> dict[str, Lazy]:
        """Return the stage's tensors as they are to be kept: the average in the weights' place, where there is one."""
        average = self._ema.average if self._ema is not None else {}
        own = self.stage.state_dict()

        def fetch(name: str) -> Tensor:
            return average.get(name, own[name]).to(own[name].dtype)

        return {name: Lazy(tuple(x.shape), x.dtype, functools.partial(fetch, name)) for name, x in own.items()}

    def save(self, folder: Path) -> None:
        """Write all that training needs to go on: weights and buffers, optimiser, average, scales, updates; the first
        process does, and all take part."""
        pieces = reduction.state_pieces(self._ending.reducer, self._copies, self._span, self._shape)
        if self.world.rank > 0:
            return
        tensors = {f"weights:{name}": x for name, x in self.stage.state_dict().items()}
        if self._optimizer is not None:
            state = optim.state_tensors(self._optimizer, self._names)
            tensors |= {key: x for key, x in state.items() if key.partition(":")[0] in MOMENTS}
        if self._ema is not None:
            tensors |= {f"average:{name}": x for name, x in self._ema.average.items()}
        write(folder, 0, 1, pieces | {key: whole(x) for key, x in tensors.items()})
        said: dict[str, Any] = {"engine": "torch", "processes": self.world.size, "updates": self._updates}
        if self.scales is not None:
            said["scales"] = self.scales.state_dict()
        (folder / "engine.json").write_text(json.dumps(said))

    def _span(self, name: str) -> tuple[int, int]:
        return 0, self._weights[name].numel()

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._weights[name].shape)

    def load(self, folder: Path) -> None:
        """Go on from what `save` of any engine wrote.

        Raises:
            BadRun: it is of another model or recipe.
        """
        said = json.loads((folder / "engine.json").read_text())
        self._updates = said["updates"]
        with Shards(folder) as found:
            self.stage.load_state_dict({name: found.tensor(name) for name in self.stage.state_dict()})
            if self._optimizer is not None and self._updates:
                state = {f"{kind}:{name}": found.tensor(name, kind) for name in self._weights for kind in MOMENTS}
                state |= {f"step:{name}": torch.tensor(float(self._updates)) for name in self._weights}
                optim.load_state_tensors(self._optimizer, state, self._names)
            if self._ema is not None:
                self._ema.load({name: found.tensor(name, "average") for name in self._weights})
            state = reduction.state_from(found, self._copies, self._span)
            if state:
                self._ending.reducer.load_state_dict(state)
        if self.scales is not None and "scales" in said:  # weights to begin with have none
            self.scales.load_state_dict(said["scales"])
        self._begin()


def refuse_accumulation(stage: Stage, recipe: Recipe) -> None:
    """Raise ConfigError when a part whose loss is no mean over samples would see less than the whole batch."""
    for role in stage.roles:
        if recipe.accumulate > 1 and getattr(stage.generator.parts[role], "whole_batch", False):
            raise ConfigError(
                f"{role}: its loss compares the samples of a batch with each other, so the batch cannot be split; "
                "set accumulate to 1 and, if memory is short, lower the batch"
            )


def block_names(stage: nn.Module) -> dict[str, str]:
    """Return parameter name -> name of the innermost residual branch that holds it."""
    found: dict[str, str] = {}
    for name, block in residuals(stage):  # outer blocks come first, so inner ones overwrite them
        found.update({f"{name}.branch.{inner}": name for inner, _ in block.branch.named_parameters()})
    return found

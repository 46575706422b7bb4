"""`--precision resblock`: a gradient scale for every residual branch, and the law by which each moves.

One scale for all gradients must be small enough for the block whose gradients are largest, and those of a block whose
gradients are smallest then vanish in fp16. So each block has its own. [1] appendix D:

- A scale begins at M * 2^13, where M is the number of workers among which a batch is divided.
- After an update in which no gradient of the block's parameters was Inf or NaN it is multiplied by 2^(1/1000).
- Else it is divided by sqrt(2), but not twice within 125 updates, and the whole update is skipped.
- It stays within [M * 2^7, M * 2^24].

In a skipped update no scale grows: those of blocks without Inf or NaN stay where they are.

log2(scale / M) is a whole number of thousandths, so the law is exact in integers, and a scale is M'/M times itself
among M' workers without a word. What runs between these scales is in `zoo.nn.scaled`.

An engine makes the step in this order: `bad = scales.unscale(gradients)`; the maximum of `bad` over all processes;
reduce, norm, clip; step or skip, which is the same on every process; `scales.move(bad, made=..., loss=...)`.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import BadRun, ConfigError
from zoo.interfaces import Grad
from zoo.nn.residual import outer_residuals, residuals

log = logging.getLogger("zoo.train")

START, LOWEST, HIGHEST = 13_000, 7_000, 24_000
"""log2(scale / M) in thousandths [1]."""
GROWTH, FALL = 1, 500
"""What a clean update adds and a division takes away: factors 2^(1/1000) and 1/sqrt(2) [1]."""
GUARD = 125
"""Updates, skipped ones included, from one division of a scale to the next, at least [1]."""


class Scales:
    """The scales of a stage's residual branches; making one puts the branches in fp16 while they train.

    A residual sum inside another's branch has no scale of its own: it runs in fp16 under that of the outer one, to
    which its parameters count.

    Args:
        stage: the module whose branches are scaled; `detach` undoes it.
        workers: M.
        averaged: the engine differentiates the mean over a worker's own samples and averages gradients over workers
            later. The paper's loss is divided by the whole batch, M times smaller, so its M and this one's absence
            cancel: branches then multiply by scale / M, which puts the paper's numbers into fp16. False: the engine
            divides the loss by M and sums the gradients; branches multiply by the scale itself.
        device: where the branches compute; None: where the first parameter is.

    Raises:
        ConfigError: the stage has no residual branch.
    """

    def __init__(
        self,
        stage: nn.Module,
        *,
        workers: int = 1,
        averaged: bool = True,
        device: torch.device | None = None,
    ) -> None:
        blocks = dict(outer_residuals(stage))
        if not blocks:
            raise ConfigError(
                f"--precision resblock scales the gradients of residual branches, and {_called(stage)} has none: "
                "use fp32 or bf16"
            )
        self.names = tuple(blocks)
        self.workers = workers
        self._share = 1 if averaged else workers
        self._law = [START] * len(blocks)
        self._since = [GUARD] * len(blocks)
        device = device or next(stage.parameters()).device
        say_if_slow(device, "resblock")
        self._values = torch.empty(len(blocks), device=device)
        self._publish()
        self._index: dict[str, int] = {}
        for i, (name, block) in enumerate(blocks.items()):
            block.grad_scale = self._values[i]
            self._index.update({f"{name}.branch.{inner}": i for inner, _ in block.branch.named_parameters()})

    def _publish(self) -> None:
        """Put the scales where the branches read them."""
        self._values.copy_(torch.tensor([self._scale(i) for i in range(len(self._law))]))

    def _scale(self, i: int) -> float:
        """Return what a block's branch multiplies by."""
        return self._share * 2.0 ** (self._law[i] / 1000)

    @torch.no_grad()
    def unscale(self, grads: Iterable[Grad]) -> Tensor:
        """Divide the gradients of scaled blocks by their scale, in place; say where one is Inf or NaN.

        Args:
            grads: fp32 gradients or shards of them, named as the stage names its parameters; each is done with
                before the next is asked for.

        Returns:
            Bool [blocks + 1], True where a gradient is not finite; the last entry stands for all parameters outside
            the blocks. The maximum over all processes is what `update` takes.
        """
        bad = torch.zeros(len(self.names) + 1, dtype=torch.bool, device=self._values.device)
        for grad in grads:
            if grad.tensor.dtype in (torch.float16, torch.bfloat16):
                raise TypeError(f"{grad.name}: a gradient is divided by its scale in float32, not {grad.tensor.dtype}")
            i = self._index.get(grad.name, -1)
            bad[i] |= (~grad.tensor.isfinite().all()).to(bad.device)  # an offloaded one is on the CPU
            if i >= 0:
                grad.tensor.div_(self._scale(i))
        return bad

    def update(self, bad: Tensor, *, made: bool) -> list[str]:
        """Move the scales after an update.

        Args:
            bad: what `unscale` returned, of all processes together.
            made: the update was made.

        Returns:
            The blocks whose scale was divided.

        Raises:
            ValueError: the update was made although something in `bad` is True.
        """
        *flags, elsewhere = bad.tolist()
        if made and (elsewhere or any(flags)):
            raise ValueError("an update was made with a gradient that is not finite")
        divided = []
        for i, overflowed in enumerate(flags):
            self._since[i] += 1
            if overflowed and self._since[i] >= GUARD:
                self._law[i] = max(self._law[i] - FALL, LOWEST)
                self._since[i] = 0
                divided.append(self.names[i])
            elif made:
                self._law[i] = min(self._law[i] + GROWTH, HIGHEST)
        self._publish()
        return divided

    def move(self, bad: Tensor, *, made: bool, loss: bool) -> dict[str, float]:
        """Do `update`, say what fell, and return the row of an update for the curves.

        Args:
            bad, made: as in `update`.
            loss: the losses were finite, so that it was gradients that overflowed.

        Returns:
            The scales, and "settling" where a falling scale will end the skips.
        """
        settling = not made and loss and self.can_fall(bad)
        for name in self.update(bad, made=made):
            log.info("%s: a gradient overflowed; its scale falls to 2^%.3f", name, self.log2()[name])
        return {**self.row(), **({"settling": 1.0} if settling else {})}

    def can_fall(self, bad: Tensor) -> bool:
        """Return whether all that is bad is in blocks whose scale is not at its lowest: time will mend it."""
        *flags, elsewhere = bad.tolist()
        return not elsewhere and all(x > LOWEST for x, flag in zip(self._law, flags, strict=True) if flag)

    def log2(self) -> dict[str, float]:
        """Return log2 of each block's scale, M included."""
        base = math.log2(self.workers)
        return {name: round(base + x / 1000, 6) for name, x in zip(self.names, self._law, strict=True)}

    def row(self) -> dict[str, float]:
        """Return `log2` under the names it has in `metrics.jsonl`: "scale/BLOCK"."""
        return {f"scale/{name}": x for name, x in self.log2().items()}

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers: of each block log2(scale / M) in thousandths, and updates since its last division."""
        pairs = zip(self._law, self._since, strict=True)
        return {"workers": self.workers, "blocks": dict(zip(self.names, map(list, pairs), strict=True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state; made with M' workers, its scales and limits are multiplied by M / M' [1].

        Raises:
            BadRun: the state is of other blocks.
        """
        blocks = state["blocks"]
        if set(blocks) != set(self.names):
            name = sorted(set(blocks) ^ set(self.names))[0]
            raise BadRun(f"gradient scales: the checkpoint has {len(blocks)} blocks and the model {len(self.names)}, "
                         f"'{name}' not among both")  # fmt: skip
        self._law, self._since = ([blocks[name][i] for name in self.names] for i in (0, 1))
        self._publish()
        if state["workers"] != self.workers:
            log.info("gradient scales: times %g, for %d workers", self.workers / state["workers"], self.workers)


def detach(module: nn.Module) -> None:
    """Let every residual branch run as it is, without a scale."""
    for _, block in residuals(module):
        block.grad_scale = None


def _called(stage: nn.Module) -> str:
    return f"'{stage.part}'" if isinstance(getattr(stage, "part", None), str) else type(stage).__name__


def say_if_slow(device: torch.device, precision: str) -> None:
    """Say once, of a CPU on which torch has no fp16 arithmetic, that this precision is slow."""
    fast = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    if device.type == "cpu" and not fast:
        _say_slow(precision)


@functools.cache
def _say_slow(precision: str) -> None:
    log.warning(
        "on this CPU torch has no fp16 arithmetic: --precision %s works, many times slower than fp32", precision
    )

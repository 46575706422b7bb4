"""A step of a sampler compiled with its weights as constants, so that the compiler may lay them out for it.

On a CPU a step of few rows is bound by reading weights and by the calls between products; one graph of all layers with
packed weights has neither wait. A graph is of one number of rows, takes seconds to make, and copies the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

OPTIONS: dict[str, Any] = {"freezing": True, "max_autotune": True, "max_autotune_gemm_backends": "CPP"}
"""What the compiler is told on a CPU: weights are constants, and products its own, on weights packed for them."""
OWN_PRODUCTS = (torch.float32, torch.bfloat16, torch.float16)
"""Number formats it has products for."""

KEPT = 4
"""Graphs that a model keeps, each with a copy of the weights: those of the last numbers of rows."""

Weights = tuple[tuple[int, int], ...]


class Frozen:
    """The compiled steps of one model, by number of rows; made on first use, and again when a weight has changed."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Weights, Callable[..., Tensor]]] = {}

    def step(self, rows: int, model: nn.Module, make: Callable[[], nn.Module]) -> Callable[..., Tensor]:
        """Return the compiled forward of `make()` for so many rows.

        Args:
            rows: rows of every argument that has rows.
            model: whose weights the step reads. Changed in place they are noticed, unless through `.data`.
            make: builds the step.
        """
        weights = tuple((p.data_ptr(), p._version) for p in model.parameters())
        known = self._made.pop(rows, None)
        if known is None or known[0] != weights:
            known = weights, _Step(make())
        self._made[rows] = known  # the last of them
        for oldest in [*self._made][:-KEPT]:
            del self._made[oldest]
        return known[1]

    def __deepcopy__(self, memo: dict[int, object]) -> Frozen:
        return Frozen()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Frozen, ()


class _Step:
    """A module's forward, compiled at its first call, which must be on arguments like all later ones.

    Sizes may differ later that `torch._dynamo.mark_dynamic` says of the first arguments.
    """

    def __init__(self, module: nn.Module) -> None:
        weight = next(module.parameters())
        own = weight.device.type == "cpu" and weight.dtype in OWN_PRODUCTS
        self.options = OPTIONS if own else {}
        self.forward = torch.compile(_own_code(module), fullgraph=True)
        self.compiled = False

    def __call__(self, *arguments: Any) -> Tensor:
        if self.compiled:
            # Shapes and weights are known to be the graph's: asking again takes a fifth of a small model's step.
            with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
                made: Tensor = self.forward(*arguments)
            return made
        from torch._dynamo import config as tracing
        from torch._inductor import config as compiling

        with compiling.patch(self.options), tracing.patch(automatic_dynamic_shapes=False):
            made = self.forward(*arguments)
        self.compiled = True
        return made


def _own_code(module: nn.Module) -> Callable[..., Tensor]:
    """Return the module's forward with a code object of its own.

    The compiler keeps its graphs by code object and finds one again by what the arguments are, not by what the weights
    hold that are constants of it: a step made after the weights changed would be given the old one's graph.
    """
    forward = type(module).forward
    code = forward.__code__.replace()
    own = FunctionType(code, forward.__globals__, forward.__name__, forward.__defaults__, forward.__closure__)
    return MethodType(own, module)

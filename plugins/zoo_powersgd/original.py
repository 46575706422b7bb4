"""PowerSGD as published: one power iteration a step from the last step's factors, and error feedback.

For each matrix M_k = gradient + error of rank k, as [1] algorithm 1: P = sum of M_k Q, orthonormal columns, Q = mean of
M_kt P; the mean gradient is taken to be P Qt, and what it lacks of M_k is the error that is added next time.

[1] T. Vogels et al.: PowerSGD. arXiv:1905.13727
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo.interfaces import Grad, Reduced, Shard, Traffic
from zoo_powersgd import configs
from zoo_powersgd.exchange import Exchange
from zoo_powersgd.ledger import Ledger
from zoo_powersgd.matrices import Matrix, draw, flatten, orthonormal, split, unflatten
from zoo_powersgd.whole import average_whole, flag, norms_squared


class PowerSgd:
    """A reducer; collectives of a step in this order: what is sent whole with one flag, all P, all Q.

    A step in which any rank has a value that is not finite ends after the first, on all ranks, and leaves errors and
    factors as they were.

    Args:
        config: which gradients are compressed, and how far.
        seed: decides the first Q of every matrix.
        exchange: makes a group's collectives.
    """

    def __init__(
        self, config: configs.PowerSgd, *, seed: int = 0, exchange: Callable[[Any], Exchange] = Exchange
    ) -> None:
        self.config = config
        self.ledger = Ledger(seed)
        self._exchange = exchange
        self._group: Any = None
        self._errors: dict[str, Tensor] = {}
        self._factors: dict[str, Tensor] = {}
        self._open = False

    def cost(self, shards: Iterable[Shard], ranks: int) -> Traffic:
        """Return what `reduce` sends, in bytes."""
        return self.config.cost(shards, ranks)

    @torch.no_grad()
    def reduce(self, grads: Iterable[Grad], group: Any) -> Reduced:
        """Average over a group, in place; compressed gradients when the answer's `decompress` is called.

        Raises:
            BadRun: a loaded state belongs to other gradients.
        """
        if self._open:
            raise RuntimeError("the last reduction is still open: call its `decompress`, also when skipping the update")
        self._group, exchange = group, self._exchange(group)
        dense = exchange.size == 1 or self.ledger.steps < self.config.dense_steps
        matrices, whole = split(self.config, grads, dense=dense)
        self.ledger.add_errors(whole)
        ps = [self._project(matrix) for matrix in matrices]
        self.ledger.check_met()
        tensors = [grad.tensor for grad in whole]
        # A value of M that is not finite makes a row of P so: looking at P is enough.
        flags = flag(ps)
        bad = any(average_whole(tensors, None if flags is None else flags.amax(0, keepdim=True), exchange))
        rest = exchange.sent
        qs = self._factorise(matrices, ps, exchange) if matrices and not bad else []
        self.ledger.count(exchange, rest)
        norm = math.inf if bad else math.fsum(norms_squared([*tensors, *qs]))
        finite = math.isfinite(norm)
        self._open = bool(matrices) or self.ledger.unsettled
        settle = partial(self._settle, matrices, ps, qs, finite) if self._open else None
        return Reduced(norm if finite else math.inf, finite, settle, exchange.sent)

    def _project(self, matrix: Matrix) -> Tensor:
        """Make the gradient M = gradient + error, in place; return P = M Q of this rank."""
        name, low = matrix.name, matrix.low
        if name not in self._errors:
            loaded = self.ledger.error(name, matrix.tensor)
            self._errors[name] = torch.zeros_like(matrix.tensor) if loaded is None else loaded.clone()
            factor = self.ledger.factor(name, matrix.tensor, (low.q, low.rank))
            self._factors[name] = draw(self.ledger.seed, matrix) if factor is None else factor
        matrix.tensor.add_(self._errors[name])
        return matrix.project(matrix.grid, self._factors[name])

    def _factorise(self, matrices: list[Matrix], ps: list[Tensor], exchange: Exchange) -> list[Tensor]:
        """Make every P of `ps` orthonormal, and return every Q: both the same on all ranks."""
        summed = exchange.sum_(flatten(ps))
        ps[:] = [orthonormal(p) for p in unflatten(summed, ps)]
        qs = [matrix.back(matrix.grid, p) for matrix, p in zip(matrices, ps, strict=True)]
        mean = exchange.sum_(flatten(qs)).div_(exchange.size)
        return unflatten(mean, qs)

    @torch.no_grad()
    def _settle(
        self, matrices: list[Matrix], ps: list[Tensor], qs: list[Tensor], finite: bool, applied: bool
    ) -> None:  # fmt: skip
        """Write the mean gradients and keep what they lack; an update that is skipped leaves no trace."""
        self._open = False
        self.ledger.settle(applied)
        if not (applied and finite):
            return
        for matrix, p, q in zip(matrices, ps, qs, strict=True):
            error = self._errors[matrix.name].copy_(matrix.tensor)
            matrix.write(p, q)
            error.sub_(matrix.tensor)
            self._factors[matrix.name] = q

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """Return the errors' mean over the group, the factors and the counters, on the CPU, alike on every rank.

        Only the mean of the errors has an effect on what is averaged. Every rank's own error is set to it, so that a
        resumed run and this one go on alike.
        """
        if self._open:
            raise RuntimeError("a reduction is still open: call its `decompress` before saving")
        state = self.ledger.state()
        if self._errors:
            exchange = self._exchange(self._group)
            for name, error in self._errors.items():
                exchange.sum_(error).div_(exchange.size)
                state[f"error/{name}"] = error.to("cpu", copy=True)
                state[f"q/{name}"] = self._factors[name].to("cpu", copy=True)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, in a group of any size."""
        self._errors, self._factors, self._open = {}, {}, False
        self.ledger.load(state)


def build(options: Any) -> PowerSgd:
    """Return the reducer that `options.reducer`, "powersgd" or "powersgd:rank=8", asks for."""
    config = configs.powersgd(options.reducer.partition(":")[2])
    return PowerSgd(config, seed=options.seed or 0)

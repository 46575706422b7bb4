"""PowerSGD as DALL-E was trained with it: a fixed random Q, 16-bit factors, the error buffer as gradient buffer.

Steps (1) to (13) are [1] appendix E's. Between the M machines of a group, b_k being the error buffer of machine k:

    (2)       b_k += g_k / M, g_k the gradient averaged inside the machine
    (3) (4)   P = mean of b_k Q, Q Gaussian and never updated
    (5)       P = orthonormal(P + epsilon I)
    (6) (7)   Q' = sum of b_kt P
    (9)       ||mean gradient||^2 = sum of ||Q'||^2, P being orthonormal, and the squares of what was sent whole
    (11)      mean gradient = P Q't, when it is known whether the update is made
    (12)      b_k -= P Q't / M

[1] divides the loss by the samples of all machines; the engine's gradients are means of one machine's samples, hence
the division in (2), which makes P Q't the mean.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import attrs
import torch
from torch import Tensor

from zoo.interfaces import Grad, Reduced, Shard, Traffic
from zoo_powersgd import configs
from zoo_powersgd.exchange import Exchange
from zoo_powersgd.ledger import Ledger
from zoo_powersgd.matrices import Matrix, draw, flatten, orthonormal, split, unflatten
from zoo_powersgd.whole import average_whole, flag, norms_squared
from zoo_powersgd.wire import FORMATS


@attrs.define(eq=False)
class Work:
    """One matrix on its way through a step."""

    matrix: Matrix
    p: Tensor
    """[p,r], of this rank, then of all."""
    clean: Tensor
    """Scalar bool: buffer and gradient of this rank are finite before they are rounded."""
    q: Tensor | None = None
    """[q,r], of all ranks; None: some rank's buffer is not finite."""


class PowerSgdDalle:
    """A reducer; collectives of a step in this order: what is sent whole with a flag a matrix, all P, all Q'.

    Between `reduce` and `decompress` a compressed `Grad.tensor` holds what step (2) makes of the buffer.

    Args:
        config: which gradients are compressed, how far, and in which numbers.
        seed: decides every Q.
        exchange: makes a group's collectives.
    """

    def __init__(
        self, config: configs.PowerSgdDalle, *, seed: int = 0, exchange: Callable[[Any], Exchange] = Exchange
    ) -> None:
        self.config = config
        self.ledger = Ledger(seed)
        self._format = FORMATS[config.format]
        self._exchange = exchange
        self._group: Any = None
        self._buffers: dict[str, Tensor] = {}
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
        works = [self._project(matrix, exchange.size) for matrix in matrices]
        self.ledger.check_met()
        tensors = [grad.tensor for grad in whole]
        # (8) and (10) come first, so that nothing bad reaches P.
        bad = average_whole(tensors, flag([work.p for work in works]), exchange)
        rest = exchange.sent
        if works:
            self._factorise(works, bad, exchange)
        self.ledger.count(exchange, rest)
        norm = math.fsum(norms_squared([*tensors, *(work.q for work in works if work.q is not None)]))  # (9)
        finite = not any(bad) and math.isfinite(norm)
        self._open = bool(works) or self.ledger.unsettled
        settle = partial(self._settle, works, exchange.size) if self._open else None
        return Reduced(norm if finite else math.inf, finite, settle, exchange.sent)

    def _project(self, matrix: Matrix, size: int) -> Work:
        """Add the buffer to the gradient, in place, (2); return P of this rank, (3)."""
        name, x = matrix.name, matrix.tensor.div_(size)
        if name not in self._factors:
            self._factors[name] = self._format.pack(draw(self.ledger.seed, matrix))
            loaded = self.ledger.error(name, x)
            self._buffers[name] = self._format.pack(torch.zeros_like(x) if loaded is None else loaded / size)
        x.add_(self._format.unpack(self._buffers[name], x))
        clean = x.isfinite().all()
        self._format.round_(x)
        p = matrix.project(matrix.grid, self._format.unpack(self._factors[name], x))
        return Work(matrix, p.mul(self.config.p_scale), clean)

    def _factorise(self, works: list[Work], bad: list[float], exchange: Exchange) -> None:
        """Compute P and Q' of all ranks, (4) to (7); a matrix of which a rank has a bad buffer sends zeros."""
        for work, count in zip(works, bad, strict=True):
            if count:
                work.p = torch.zeros_like(work.p)
        ps = [work.p for work in works]
        mean = self._format.sum(flatten(ps), exchange, divide=exchange.size)
        qs = []
        for work, p, count in zip(works, unflatten(mean, ps), bad, strict=True):
            work.p = self._format.round_(orthonormal(self._regular(p)))
            x = torch.zeros_like(work.matrix.grid) if count else work.matrix.grid
            qs.append(work.matrix.back(x, work.p).mul(self.config.q_scale))
        total = self._format.sum(flatten(qs), exchange)
        for work, q, count in zip(works, unflatten(total, qs), bad, strict=True):
            work.q = None if count else q.div_(self.config.q_scale)

    def _regular(self, p: Tensor) -> Tensor:
        """Return P with columns of about unit length, plus epsilon I, so that none depends on the others, (5)."""
        length = torch.linalg.vector_norm(p) / math.sqrt(p.shape[1])
        p = torch.where(length > 0, p / length, p)
        p.diagonal().add_(self.config.epsilon)
        return p

    @torch.no_grad()
    def _settle(self, works: list[Work], size: int, applied: bool) -> None:
        """Write the mean gradients where the update is made, (11), and bring the buffers up to date, (12).

        A buffer gives up what was decompressed also when the update is skipped: the step's gradient is dropped with
        it, as in [1]. Where a matrix was not finite on some rank its buffers keep all they have.
        """
        self._open = False
        self.ledger.settle(applied)
        for work in works:
            matrix, x = work.matrix, work.matrix.grid
            if work.q is not None and bool(work.q.isfinite().all()):
                gradient = matrix.expand(work.p, work.q)
                self._store(matrix, x.sub_(gradient / size))
                if applied:
                    matrix.tensor.copy_(gradient.view(matrix.tensor.shape))
            elif work.clean:
                # Finite, or spoilt in rounding, when there is nothing to keep. An unclean one was not added to.
                self._store(matrix, x if bool(x.isfinite().all()) else torch.zeros_like(x))

    def _store(self, matrix: Matrix, x: Tensor) -> None:
        self._buffers[matrix.name] = self._format.pack(x.reshape(matrix.tensor.shape))

    @torch.no_grad()
    def state_dict(self) -> dict[str, Tensor]:
        """Return the buffers' sums over the group and the counters, on the CPU, alike on every rank.

        Only the sum has an effect on what is averaged, so it is what [1] saves. Every rank's own buffer is set to its
        share of it, so that a resumed run and this one go on alike.
        """
        if self._open:
            raise RuntimeError("a reduction is still open: call its `decompress` before saving")
        state = self.ledger.state()
        if self._buffers:
            exchange = self._exchange(self._group)
            for name, stored in self._buffers.items():
                total = exchange.sum_(self._format.unpack(stored, torch.empty(0, dtype=torch.float32)).clone())
                self._buffers[name] = self._format.pack(total / exchange.size)
                state[f"error/{name}"] = total.cpu()
        return state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; a group of any size shares the sums evenly."""
        self._buffers, self._factors, self._open = {}, {}, False
        self.ledger.load(state)


def build(options: Any) -> PowerSgdDalle:
    """Return the reducer that `options.reducer`, "powersgd-dalle" or with settings, asks for."""
    config = configs.powersgd_dalle(options.reducer.partition(":")[2])
    return PowerSgdDalle(config, seed=options.seed or 0)

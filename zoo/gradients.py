"""What engines and reducers hand each other: gradients, and what reducing them costs. Part of `zoo.interfaces`.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import attrs

if TYPE_CHECKING:
    from torch import Tensor


@attrs.frozen(eq=False)
class Grad:
    """One parameter's gradient as a reducer sees it: the local shard, in fp32."""

    name: str
    tensor: Tensor
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    axis: int | None
    """Axis it is sharded on, or None."""
    block: str | None
    """Name of the residual branch it belongs to, or None."""
    matrix: bool
    """True where low-rank compression applies."""


@attrs.frozen
class Reduced:
    """What a reducer knows after a reduction; alike on every rank of the group."""

    norm_squared: float
    """Squared norm of the mean gradients this rank holds: over its shards only; inf where one is not finite."""
    finite: bool
    """False when a gradient of any rank of the group was not finite."""
    decompress: Callable[[bool], None] | None = None
    """What is left to do at the step; None: nothing, the tensors hold the mean.

    Called once on every rank, before the next `reduce`, when all processes know whether the update is made: with True,
    which writes the mean into the `Grad.tensor`s that were compressed (until then they hold no gradient), or with
    False for an update that is skipped, which leaves their values undefined. Either way it settles the error
    feedback. Sends nothing.
    """
    sent: int = 0
    """Bytes that this rank put into the reduction's collectives, each buffer counted once."""


@attrs.frozen(kw_only=True)
class Shard:
    """A gradient without its tensor: what a reducer must know to say what it will send."""

    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    local: tuple[int, ...]
    """Shape of the part this rank holds; (elements,) where it is flat."""
    axis: int | None = None
    """Axis it is sharded on, or None."""
    matrix: bool
    """True where low-rank compression applies."""


@attrs.frozen(kw_only=True)
class Traffic:
    """Bytes that one rank puts into a reducer's collectives in one step, each all-reduced buffer counted once."""

    matrices: int
    """Sent for the matrices that are compressed."""
    matrices_dense: int
    """What the same matrices would take uncompressed, in the number format they are sent in."""
    rest: int
    """Everything else: gradients sent as they are (fp32), and flags."""
    start_up: int
    """All of a dense start-up step, where the reducer has such steps."""

    @property
    def sent(self) -> int:
        """Everything, with compression."""
        return self.matrices + self.rest

    @property
    def dense(self) -> int:
        """Everything, without compression."""
        return self.matrices_dense + self.rest

    @property
    def saved(self) -> float:
        """Fraction saved on the compressed matrices alone; 0 where there are none."""
        return 1 - self.matrices / self.matrices_dense if self.matrices_dense else 0.0

    @property
    def saved_total(self) -> float:
        """Fraction saved over all gradients; 0 where nothing is sent."""
        return 1 - self.sent / self.dense if self.dense else 0.0


class Reducer(Protocol):
    """Averages gradients over a group of ranks, in place.

    `reduce` and `state_dict` are collective: every rank of the group calls them, in the same order.
    """

    def reduce(self, grads: Iterable[Grad], group: Any) -> Reduced:
        """Average over a process group whose ranks hold the same shards; None: there is one process."""

    def state_dict(self) -> dict[str, Any]:
        """Return tensors, alike on every rank of the group.

        "error/NAME" is error feedback, in the shape of the gradient of this name: an engine cuts it anew for another
        number of shards. Single numbers (counters) go with it; anything else is handed back to the same shards only.
        """

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; the group may have another number of ranks than the one that saved it."""

    def cost(self, shards: Iterable[Shard], ranks: int) -> Traffic:
        """Return what `reduce` sends for such gradients in a group of so many ranks. Needs no torch."""

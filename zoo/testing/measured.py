"""What a training step really keeps, to compare a plan with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


def saved_bytes(part: nn.Module, loss: Callable[[], Any]) -> int:
    """Return the bytes of the distinct storages that autograd keeps while `loss()` runs.

    The part's own parameters and buffers are left out.
    """
    own = {x.untyped_storage().data_ptr() for x in (*part.parameters(), *part.buffers())}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(x)  # a freed tensor's address would be given to another
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        loss()
    return sum(sizes.values())

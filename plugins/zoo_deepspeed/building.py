"""Building a part in pieces: each module's parameters are partitioned as soon as its constructor returns (stage 3)."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from zoo_deepspeed.machines import Machines
from zoo_deepspeed.start import deepspeed


def lengthen(p: nn.Parameter) -> None:
    """Give a parameter without an axis one of length 1, which DeepSpeed needs to send it; `is_scalar` remembers."""
    if p.ndim == 0:
        p.data = p.data.view(1)
        p.is_scalar = True  # type: ignore[attr-defined]


@functools.cache
def _init_class() -> Any:
    """Return DeepSpeed's context with scalars lengthened."""

    class Init(deepspeed().zero.Init):  # type: ignore[misc]
        def _post_init_method(self, module: nn.Module) -> None:
            for p in module.parameters(recurse=False):
                if not hasattr(p, "ds_id"):
                    lengthen(p)
            super()._post_init_method(module)

    return Init


class Partitioned:
    """A context to build parts in, entered any number of times, one after the other.

    Tensors are made as they would be without it (`tensor_overrides`): initial weights are the same to the bit at
    every stage.

    Args:
        settings: DeepSpeed's JSON.
        machines: the processes among which a parameter is cut.
    """

    def __init__(self, settings: dict[str, Any], machines: Machines) -> None:
        self.settings, self.machines = settings, machines
        self._inner: Any = None

    def __enter__(self) -> Partitioned:
        group = self.machines.get_data_parallel_group()
        self._inner = _init_class()(
            config_dict_or_path=self.settings, data_parallel_group=group, tensor_overrides=[], mpu=self.machines
        )
        self._inner.__enter__()
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._inner.__exit__(*error)

"""Whole parameters for a while, to sample from (stage 3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def unsharded(engine: Any) -> Iterator[None]:
    """Have every parameter whole on every process inside the block, where modules run without DeepSpeed's hooks.

    A parameter's `data` may be replaced in the block; afterwards it is what it was.
    """
    from deepspeed.runtime.zero import unwrap_model_for_generation

    engine.empty_partition_cache()
    failed: BaseException | None = None
    with unwrap_model_for_generation(engine):  # puts the hooks back at its end, but not after an error
        try:
            yield
        except BaseException as error:
            failed = error
    if failed is not None:
        raise failed

"""The hooks a plugin may implement. Implementations are called one by one, so that one that fails stops no other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from zoo.specs import Spec

PROJECT = "zoo"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def zoo_specs() -> Iterable[Spec]:
    """Return the plugin's specs: pure data. Called once, when the plugin is first needed."""
    raise NotImplementedError


@hookspec(firstresult=True)
def zoo_fetch(uri: str, dest: Path) -> Path | None:
    """Bring the weight file `uri` to `dest` and return its path, or None for a uri this plugin does not know.

    Called for a scheme the core does not read. The sha256 is checked by the core afterwards.
    """


@hookspec
def zoo_train_start(run: Any) -> None:
    """Called once before the first step of a training command; `run` has `folder`, `config`, `stage`."""


@hookspec
def zoo_train_step(run: Any, step: int, metrics: Mapping[str, float]) -> None:
    """Called after every update with the row that goes to `metrics.jsonl`."""


@hookspec
def zoo_train_end(run: Any) -> None:
    """Called once when a training command ends, also after an interrupt."""

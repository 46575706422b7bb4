"""Image Zoo: the classic systems of image generation as real, interchangeable, trainable parts.

    import zoo
    g = zoo.build("dalle")                 # a whole system; a card of a part gives the part
    g = zoo.load("runs/dalle")             # a trained run
    images = g.generate(["a red circle above a blue square"], images_per_prompt=8)

Importing this imports no torch; the first call that needs it does.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as a type checker reads it; `typing` itself would be half of this module's import time
if TYPE_CHECKING:
    from typing import Any

    from zoo.hookspecs import hookimpl
    from zoo.planning.plan import plan
    from zoo.registry import build, info, list_models, load, resolve

_LAZY = {
    "build": "zoo.registry",
    "load": "zoo.registry",
    "info": "zoo.registry",
    "resolve": "zoo.registry",
    "list_models": "zoo.registry",
    "plan": "zoo.planning.plan",
    "hookimpl": "zoo.hookspecs",
}

__all__ = ["build", "hookimpl", "info", "list_models", "load", "plan", "resolve", "specs"]


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name == "specs":
        return importlib.import_module("zoo.specs")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("image-zoo")
    raise AttributeError(f"module 'zoo' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])

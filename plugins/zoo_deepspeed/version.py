"""The one DeepSpeed this engine was made for. Imports no torch.

The engine reads what DeepSpeed's optimisers hold, much of which is not promised to stay (`fragments.py` lists it). So
the version is pinned, and another one is refused before anything runs.
"""

from __future__ import annotations

from importlib import metadata

from zoo.errors import ConfigError

VERSION = "0.19.8"


def check_version() -> None:
    """Refuse to work with another DeepSpeed.

    Raises:
        ConfigError: DeepSpeed is missing, or of another version; says what to type.
    """
    try:
        found = metadata.version("deepspeed")
    except metadata.PackageNotFoundError:
        raise ConfigError(
            "engine 'deepspeed' needs DeepSpeed: pip install 'image-zoo[deepspeed]'; or take --engine torch, which "
            "shards nothing"
        ) from None
    if found != VERSION:
        raise ConfigError(
            f"engine 'deepspeed' is made for DeepSpeed {VERSION} and {found} is installed: "
            f"pip install deepspeed=={VERSION}"
        )

"""DeepSpeed, imported once, without its chatter, on the processes that have met."""

from __future__ import annotations

import functools
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch

from zoo.errors import ConfigError


@functools.cache
def deepspeed() -> Any:
    """Return the module, its communication set up over torch's process group.

    Its own log is kept to errors, and what torch 2.13 says at every step about two functions that DeepSpeed uses is
    kept quiet.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", message=".*(all_gather_into_tensor|reduce_scatter_tensor|_all_gather_base).*")
    import deepspeed as module
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    # Built at the first start otherwise, for two minutes, and used by inference alone.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    module.init_distributed(auto_mpi_discovery=False, verbose=False)
    return module


def refuse_wrong_values(path: Path, said: dict[str, Any], machines: Any) -> None:
    """Have DeepSpeed read a user's settings before anything is made of them.

    Args:
        path: the user's file, for the message.
        said: the merged JSON.
        machines: the processes, as DeepSpeed is told of them.

    Raises:
        ConfigError: DeepSpeed does not accept a value; says which.
    """
    deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig, DeepSpeedConfigError
    from pydantic import ValidationError

    try:
        DeepSpeedConfig(said, machines)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: '{where}' is {first['input']!r}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        ) from None
    except (DeepSpeedConfigError, AssertionError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: DeepSpeed does not accept it: {' '.join(str(error).split())}") from error

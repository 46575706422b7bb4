"""Training on many processes with DeepSpeed's ZeRO: parameters, gradients and optimiser states in shards.

[1] S. Rajbhandari et al.: ZeRO: Memory Optimizations Toward Training Trillion Parameter Models. arXiv:1910.02054
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import EngineSpec

ZOO_API = 1


@hookimpl
def zoo_specs() -> Iterable[EngineSpec]:
    """Return this plugin's engine."""
    return [
        EngineSpec(
            name="deepspeed",
            build="zoo_deepspeed.engine:DeepSpeedEngine",
            summary="one process or many, ZeRO stages 0 to 3, on DeepSpeed 0.19.8",
        )
    ]

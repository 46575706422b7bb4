"""Low-rank gradients between machines: PowerSGD as published, and as DALL-E was trained with.

[1] T. Vogels, S. P. Karimireddy, M. Jaggi: PowerSGD: Practical Low-Rank Gradient Compression for Distributed
    Optimization. arXiv:1905.13727
[2] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, appendices D and E
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ReducerSpec

ZOO_API = 1


@hookimpl
def zoo_specs() -> Iterable[ReducerSpec]:
    """Return this plugin's reducers."""
    return [
        ReducerSpec(
            name="powersgd",
            build="zoo_powersgd.original:build",
            config="zoo_powersgd.configs:powersgd",
            summary="low-rank gradients, warm-started factors (Vogels et al. 2019)",
        ),
        ReducerSpec(
            name="powersgd-dalle",
            build="zoo_powersgd.dalle:build",
            config="zoo_powersgd.configs:powersgd_dalle",
            summary="low-rank gradients, fixed random factors in 16 bits (DALL-E)",
        ),
    ]

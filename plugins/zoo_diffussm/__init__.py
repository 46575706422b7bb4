"""DiffuSSM: diffusion by gated bidirectional state space models, without attention; and DiT beside it.

J. Yan, J. Gu, A. Rush: Diffusion models without attention. arXiv:2311.18257
W. Peebles, S. Xie: Scalable diffusion models with transformers. arXiv:2212.09748
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1

SSM = (
    "diffussm-s-256", "diffussm-s-512", "diffussm-l-256", "diffussm-l-512", "diffussm-xl-256", "diffussm-xl-512",
    "diffussm-xl-256-m1", "diffussm-denoiser", "diffussm-denoiser-pixel", "diffussm-denoiser-tiny",
)  # fmt: skip
DIT = ("dit-xl-2-256", "dit-xl-2-512", "dit-s-1-256", "dit-denoiser", "dit-denoiser-tiny")
SYSTEMS = ("diffussm", "diffussm-256", "diffussm-512", "diffussm-tiny", "dit", "dit-256", "dit-tiny")


def _named(module: str, names: Iterable[str]) -> dict[str, str]:
    return {name: f"zoo_diffussm.{module}:{name.replace('-', '_')}" for name in names}


@hookimpl
def zoo_specs() -> Iterable[ModelSpec]:
    """Return this plugin's models."""
    return [
        ModelSpec(
            interface="denoiser",
            config="zoo_diffussm.configs:DiffuSsm",
            build="zoo_diffussm.model:diffussm",
            variants=_named("variants", SSM),
        ),
        ModelSpec(
            interface="denoiser",
            config="zoo_diffussm.configs:DiT",
            build="zoo_diffussm.model:dit",
            variants=_named("variants", DIT),
            interop={"dit": "zoo_diffussm.interop:from_dit"},
            exports={"dit": "zoo_diffussm.interop:to_dit"},
        ),
        ModelSpec(
            interface="generator",
            config="zoo.systems:Cascade",
            build="zoo.generators:CascadeGenerator",
            variants=_named("systems", SYSTEMS),
        ),
    ]

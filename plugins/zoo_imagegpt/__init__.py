"""ImageGPT: a transformer over the pixels of a small picture, each one of 512 colours.

M. Chen et al.: Generative Pretraining from Pixels. ICML 2020.
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1

SIZES = ("imagegpt-s", "imagegpt-m", "imagegpt-l", "imagegpt-l-48", "imagegpt-xl", "imagegpt-xl-64")
BERTS = ("imagegpt-s-bert", "imagegpt-m-bert", "imagegpt-l-bert", "imagegpt-bert")
LAYOUTS = ("transformers", "openai")


def _named(module: str, *names: str) -> dict[str, str]:
    return {name: f"zoo_imagegpt.{module}:{name.replace('-', '_')}" for name in names}


@hookimpl
def zoo_specs() -> Iterable[ModelSpec]:
    """Return this plugin's models."""
    priors = [f"{name}-prior" for name in (*SIZES, *BERTS, "imagegpt")]
    return [
        ModelSpec(
            interface="codebook",
            config="zoo_imagegpt.configs:Palette",
            build="zoo_imagegpt.palette:Palette",
            variants=_named("variants", "palette-512", "palette", "palette-tiny"),
            interop={name: f"zoo_imagegpt.clusters:from_{name}" for name in LAYOUTS},
            folders={"transformers": "zoo_imagegpt.clusters:to_folder"},
        ),
        ModelSpec(
            interface="prior",
            config="zoo_imagegpt.configs:ImageGptPrior",
            build="zoo_imagegpt.model:ImageGptPrior",
            variants=_named("variants", *priors, "imagegpt-prior-tiny", "imagegpt-prior-tiny-bert"),
            interop={name: f"zoo_imagegpt.interop:from_{name}" for name in LAYOUTS},
            exports={name: f"zoo_imagegpt.interop:to_{name}" for name in LAYOUTS},
            folders={"transformers": "zoo_imagegpt.interop:to_folder"},
            described={"transformers": "zoo_imagegpt.interop:check_description"},
        ),
        ModelSpec(
            interface="generator",
            config="zoo.systems:Autoregressive",
            build="zoo.generators:AutoregressiveGenerator",
            variants=_named("systems", *SIZES, *BERTS, "imagegpt", "imagegpt-tiny"),
        ),
    ]

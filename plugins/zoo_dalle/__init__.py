"""DALL-E: a decoder-only sparse transformer over one stream of caption tokens and image codes.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1


@hookimpl
def zoo_specs() -> Iterable[ModelSpec]:
    """Return this plugin's models."""
    return [
        ModelSpec(
            interface="prior",
            config="zoo_dalle.configs:DallePrior",
            build="zoo_dalle.model:DallePrior",
            variants={
                "dalle-12b-prior": "zoo_dalle.configs:dalle_12b_prior",
                "dalle-prior": "zoo_dalle.configs:dalle_prior",
                "dalle-prior-tiny": "zoo_dalle.configs:dalle_prior_tiny",
            },
        ),
        ModelSpec(
            interface="generator",
            config="zoo.systems:Autoregressive",
            build="zoo.generators:AutoregressiveGenerator",
            variants={
                "dalle": "zoo_dalle.systems:dalle",
                "dalle-12b": "zoo_dalle.systems:dalle_12b",
                "dalle-tiny": "zoo_dalle.systems:dalle_tiny",
            },
        ),
    ]

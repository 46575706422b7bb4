"""The discrete VAE of DALL-E: pictures to a grid of codes and back.

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
            interface="codebook",
            config="zoo_dvae.configs:Dvae",
            build="zoo_dvae.model:Dvae",
            variants={
                "dvae-8192": "zoo_dvae.configs:dvae_8192",
                "dvae": "zoo_dvae.configs:dvae",
                "dvae-tiny": "zoo_dvae.configs:dvae_tiny",
            },
            interop={"openai": "zoo_dvae.interop:from_openai"},
            exports={"openai": "zoo_dvae.interop:to_openai"},
        )
    ]

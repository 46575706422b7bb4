"""Imagen: a cascade of denoisers that read captions through a frozen language model.

C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
"""

from collections.abc import Iterable

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1

BASES = ("imagen-base-64", "imagen-300m", "imagen-base", "imagen-base-tiny", "if-i-xl")
ENLARGERS = ("imagen-sr-256", "imagen-sr-1024", "imagen-sr32", "imagen-sr64", "imagen-sr-tiny")


def _named(module: str, *names: str) -> dict[str, str]:
    return {name: f"zoo_imagen.{module}:{name.replace('-', '_')}" for name in names}


@hookimpl
def zoo_specs() -> Iterable[ModelSpec]:
    """Return this plugin's models."""
    return [
        ModelSpec(
            interface="denoiser",
            config="zoo_imagen.configs:UNet",
            build="zoo_imagen.model:unet",
            variants=_named("variants", *BASES),
            interop={"deepfloyd": "zoo_imagen.interop:from_deepfloyd"},
            exports={"deepfloyd": "zoo_imagen.interop:to_deepfloyd"},
        ),
        ModelSpec(
            interface="denoiser",
            config="zoo_imagen.configs:EfficientUNet",
            build="zoo_imagen.model:efficient_unet",
            variants=_named("variants", *ENLARGERS),
        ),
        ModelSpec(
            interface="generator",
            config="zoo.systems:Cascade",
            build="zoo.generators:CascadeGenerator",
            variants=_named("systems", "imagen", "imagen-1024", "imagen-tiny"),
        ),
    ]

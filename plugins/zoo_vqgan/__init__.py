"""VQGAN's autoencoder: pictures to a grid of codes and back, by a network with attention.

P. Esser, R. Rombach, B. Ommer: Taming transformers for high-resolution image synthesis. arXiv:2012.09841.
"""

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1


@hookimpl
def zoo_specs() -> list[ModelSpec]:
    """Return the plugin's models."""
    names = ("vqgan-f16-1024", "vqgan-f16-16384", "vqgan-gumbel-f8-8192", "vqgan", "vqgan-tiny")
    return [
        ModelSpec(
            interface="codebook",
            config="zoo_vqgan.configs:Vqgan",
            build="zoo_vqgan.model:Vqgan",
            variants={name: f"zoo_vqgan.configs:{name.replace('-', '_')}" for name in names},
            interop={"taming": "zoo_vqgan.interop:from_taming"},
            exports={"taming": "zoo_vqgan.interop:to_taming"},
        )
    ]

"""Autoencoders with attention: VQGAN's, pictures to a grid of codes, and latent diffusion's, to a normal latent.

P. Esser, R. Rombach, B. Ommer: Taming transformers for high-resolution image synthesis. arXiv:2012.09841.
R. Rombach et al.: High-resolution image synthesis with latent diffusion models. arXiv:2112.10752.
"""

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1


@hookimpl
def zoo_specs() -> list[ModelSpec]:
    """Return the plugin's models."""
    vqgan = ("vqgan-f16-1024", "vqgan-f16-16384", "vqgan-gumbel-f8-8192", "vqgan", "vqgan-tiny")
    layouts = ("ldm", "stable-diffusion", "diffusers")
    return [
        ModelSpec(
            interface="codebook",
            config="zoo_vqgan.configs:Vqgan",
            build="zoo_vqgan.model:Vqgan",
            variants={name: f"zoo_vqgan.configs:{name.replace('-', '_')}" for name in vqgan},
            interop={"taming": "zoo_vqgan.interop:from_taming"},
            exports={"taming": "zoo_vqgan.interop:to_taming"},
        ),
        ModelSpec(
            interface="latent",
            config="zoo_vqgan.kl_configs:Kl",
            build="zoo_vqgan.kl:Kl",
            variants={name: f"zoo_vqgan.kl_configs:{name.replace('-', '_')}" for name in ("kl-f8", "kl", "kl-tiny")},
            interop={x: f"zoo_vqgan.kl_interop:from_{x.replace('-', '_')}" for x in layouts},
            exports={x: f"zoo_vqgan.kl_interop:to_{x.replace('-', '_')}" for x in layouts},
            folders={"diffusers": "zoo_vqgan.kl_interop:to_folder"},
            described={"diffusers": "zoo_vqgan.kl_interop:check_description"},
        ),
    ]

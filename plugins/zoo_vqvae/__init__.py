"""VQ-VAE: discrete codes by vector quantisation, a gated PixelCNN prior over them, and a continuous VAE to compare.

A. van den Oord, O. Vinyals, K. Kavukcuoglu: Neural discrete representation learning. arXiv:1711.00937.
A. van den Oord et al.: Conditional image generation with PixelCNN decoders. arXiv:1606.05328.
"""

from zoo.hookspecs import hookimpl
from zoo.specs import ModelSpec

ZOO_API = 1


def _variants(*names: str) -> dict[str, str]:
    return {name: f"zoo_vqvae.configs:{name.replace('-', '_')}" for name in names}


def _spec(interface: str, config: str, build: str, *names: str) -> ModelSpec:
    config, build = f"zoo_vqvae.configs:{config}", f"zoo_vqvae.{build}"
    return ModelSpec(interface=interface, config=config, build=build, variants=_variants(*names))


@hookimpl
def zoo_specs() -> list[ModelSpec]:
    """Return the plugin's models."""
    vqvae = ("vqvae", "vqvae-tiny", "vqvae-sonnet", "vqvae-cifar10", "vqvae-imagenet")
    return [
        _spec("codebook", "VqVae", "model:VqVae", *vqvae),
        _spec("codebook", "FsqVae", "model:VqVae", "vqvae-fsq"),
        _spec("latent", "VqLatent", "latent:VqLatent", "vqvae-latent"),
        _spec("latent", "Vae", "latent:Vae", "vae"),
        _spec("prior", "PixelCnn", "pixelcnn:PixelCnn", "pixelcnn", "pixelcnn-tiny"),
    ]

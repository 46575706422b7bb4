"""The named sizes of Imagen's denoisers. Imports no torch.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
[2] github.com/deep-floyd/IF
[3] github.com/NVIDIA/NeMo, examples/multimodal/text_to_image/imagen/conf/base64-2b.yaml
"""

from typing import Any

from attrs import evolve

from zoo.diffusion.config import Schedule
from zoo.parts import Recipe
from zoo_imagen.configs import EfficientUNet, UNet

PIXELS: dict[str, Any] = {"channels": 3, "bounded": True}
T5_XXL: dict[str, Any] = {"text_width": 4096, "text_length": 128}
"""What the paper's captions are. Their length is nowhere stated; 128 is NeMo's number [3]."""
LAPTOP: dict[str, Any] = {
    "text_width": 96,
    "text_length": 20,
    "pool_heads": 4,
    "prediction": "x0",
    "weighting": "x0",
    "groups": 4,
}
"""What laptop stages share. They predict the picture, and count its errors evenly: README.md says why."""


def _recipe(**more: Any) -> Recipe:
    """Return the paper's recipe [1] appendix F: 2.5M updates of 2048, 10 000 of them warm-up, cosine, no weight decay.

    The base model was trained with Adafactor, to save memory; this is Adam, as of the other two. Clipping and averaging
    of weights are nowhere stated.
    """
    how: dict[str, Any] = {
        "optimizer": "adam", "lr": 1e-4, "betas": (0.9, 0.999), "warmup": 10_000, "schedule": "cosine", "clip": None,
        "ema": 0.9999, "batch": 2048, "steps": 2_500_000,
    }  # fmt: skip
    return Recipe(**{**how, **more})


def imagen_base_64() -> UNet:
    """Return the paper's base model [1] appendix F: 64 px, "2B" parameters.

    The width at which attention reads captions is nowhere stated; 2048 is NeMo's `cond_dim` [3].
    """
    return UNet(text_channels=2048, size=(64, 64), train=_recipe(), **PIXELS, **T5_XXL)


def imagen_300m() -> UNet:
    """Return the paper's small U-Net, with which text encoders are compared [1] section 4.4: "300M" parameters.

    Its sizes are nowhere stated: width 192 with two blocks a level, and captions projected to 4 times the width.
    """
    return evolve(imagen_base_64(), width=192, blocks=2, text_channels=768, train=_recipe(steps=400_000))


def if_i_xl() -> UNet:
    """Return DeepFloyd's IF-I-XL [2]: 4 304 695 110 parameters."""
    return UNet(
        width=704,
        activation="gelu",
        text_channels=2816,
        text_norm="group",
        pool_heads=64,
        variance="learned",
        schedule=Schedule(kind="cosine-1000"),
        size=(64, 64),
        train=_recipe(batch=3072, steps=2_420_000),
        **PIXELS,
        **{**T5_XXL, "text_length": 77},
    )


def imagen_sr_256() -> EfficientUNet:
    """Return the paper's first super-resolution model, 64 to 256 px [1] appendix F."""
    return EfficientUNet(size=(256, 256), low=64, train=_recipe(), **PIXELS, **T5_XXL)


def imagen_sr_1024() -> EfficientUNet:
    """Return the paper's second one, 256 to 1024 px: trained on crops of 256, without self-attention [1] appendix F."""
    return EfficientUNet(
        attention=("none", "none", "none", "cross"),
        schedule=Schedule(kind="linear"),
        crop=256,
        size=(1024, 1024),
        low=256,
        train=_recipe(),
        **PIXELS,
        **T5_XXL,
    )


def imagen_base() -> UNet:
    """Return the laptop-size base model, 16 px: attention at 8 and 4 px, a quarter of an hour on two CPU cores."""
    return UNet(
        width=32,
        mults=(1, 2, 2),
        blocks=1,
        attention=(2, 4),
        head_width=32,
        schedule=Schedule(shift=-1.0),
        size=(16, 16),
        train=Recipe(
            optimizer="adam", lr=2e-3, betas=(0.9, 0.99), warmup=100, clip=1.0, ema=0.995, batch=32, steps=4700
        ),
        **PIXELS,
        **LAPTOP,
    )


def imagen_base_tiny() -> UNet:
    """Return a base model for tests."""
    tiny = {**LAPTOP, "text_width": 24, "text_length": 32, "pool_heads": 2, "groups": 8}
    recipe = Recipe(optimizer="adam", lr=1e-3, warmup=4, clip=1.0, batch=8, steps=40)
    return UNet(
        width=16, mults=(1, 2), blocks=1, attention=(2,), head_width=16, text_channels=16, size=(16, 16),
        train=recipe, **PIXELS, **tiny,
    )  # fmt: skip


def imagen_sr32() -> EfficientUNet:
    """Return the laptop-size super-resolution model, 16 to 32 px; it reads captions as the paper's first one does."""
    return EfficientUNet(
        widths=(16, 32, 64),
        blocks=(1, 2, 2),
        attention=("none", "none", "self"),
        heads=4,
        size=(32, 32),
        low=16,
        train=Recipe(optimizer="adam", lr=3e-3, betas=(0.9, 0.99), warmup=50, clip=1.0, ema=0.99, batch=16, steps=2500),
        **PIXELS,
        **LAPTOP,
    )


def imagen_sr64() -> EfficientUNet:
    """Return the same for 32 to 64 px, which reads captions as the paper's second one does."""
    below = imagen_sr32()
    return evolve(
        below,
        widths=(16, 32, 48),
        blocks=(1, 1, 1),
        attention=("none", "none", "cross"),
        size=(64, 64),
        low=32,
        train=evolve(below.train, steps=1200),
    )


def imagen_sr_tiny() -> EfficientUNet:
    """Return a super-resolution model for tests."""
    recipe = Recipe(optimizer="adam", lr=1e-3, warmup=4, clip=1.0, batch=8, steps=40)
    return evolve(
        imagen_sr32(), widths=(8, 16), blocks=(1, 1), attention=("none", "self"), heads=2, groups=4, text_width=24,
        text_length=32, pool_heads=2, train=recipe,
    )  # fmt: skip

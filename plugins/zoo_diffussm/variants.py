"""The named sizes of DiffuSSM and DiT. Imports no torch.

[1] J. Yan, J. Gu, A. Rush: Diffusion models without attention. arXiv:2311.18257
[2] W. Peebles, S. Xie: Scalable diffusion models with transformers. arXiv:2212.09748; github.com/facebookresearch/DiT
"""

from typing import Any

from attrs import evolve

from zoo.diffusion.config import Schedule
from zoo.parts import Recipe
from zoo_diffussm.configs import DiffuSsm, DiT

IMAGENET: dict[str, Any] = {"channels": 4, "bounded": False, "classes": 1000}
"""Latents of 8 times fewer pixels a side, and ImageNet's labels [1] section 5."""
LAPTOP: dict[str, Any] = {
    "channels": 4,
    "size": (8, 8),
    "bounded": False,
    "reads": "text",
    "text_width": 96,
    "text_length": 20,
    "classes": 24,
    "positions": "sincos",
    "prefix": True,
    "prediction": "x0",
    "variance": "fixed",
    "schedule": Schedule(),
    "weighting": "x0",
}
"""What laptop denoisers share: README.md says why."""
TINY: dict[str, Any] = {
    **LAPTOP,
    "size": (4, 4),
    "text_width": 24,
    "text_length": 32,
    "train": Recipe(lr=1e-3, warmup=4, batch=8, steps=40),
}
"""What denoisers for tests share."""


def _recipe(steps: int) -> Recipe:
    """Return DiT's recipe [2], code, which [1] section 5 takes over: no weight decay, no warm-up, no clipping."""
    return Recipe(
        lr=1e-4, schedule="constant", clip=None, ema=0.9999, batch=256, steps=steps, transform="flip"
    )  # fmt: skip


def diffussm_xl_256() -> DiffuSsm:
    """Return the paper's XL on the latents of 256 px [1] section 5, "673M": 660M pictures are 2.58M updates."""
    return DiffuSsm(size=(32, 32), train=_recipe(2_580_000), **IMAGENET)


def diffussm_xl_512() -> DiffuSsm:
    """Return the same for 512 px [1] section 5: 302M pictures are 1.18M updates."""
    return evolve(diffussm_xl_256(), size=(64, 64), train=_recipe(1_180_000))


def diffussm_xl_256_m1() -> DiffuSsm:
    """Return the uncompressed XL of the paper's ablation [1] section 5: every position has a place of its own."""
    return evolve(diffussm_xl_256(), shortening=1, train=_recipe(400_000))


def diffussm_l_256() -> DiffuSsm:
    """Return the L. Its width is printed as 786 in what is at hand, surely 768; its depth is not: as many parameters
    as DiT-L [2] (458M) take 44 blocks."""
    return evolve(diffussm_xl_256(), width=768, depth=44)


def diffussm_l_512() -> DiffuSsm:
    """Return the L for 512 px."""
    return evolve(diffussm_xl_512(), width=768, depth=44)


def diffussm_s_256() -> DiffuSsm:
    """Return the S: width 384 [1]; the depth is not at hand: as many parameters as DiT-S [2] (33M) take 12 blocks."""
    return evolve(diffussm_xl_256(), width=384, depth=12)


def diffussm_s_512() -> DiffuSsm:
    """Return the S for 512 px."""
    return evolve(diffussm_xl_512(), width=384, depth=12)


def dit_xl_2_256() -> DiT:
    """Return DiT-XL/2 for 256 px: 675 129 632 parameters, of which 294 912 are the fixed positions [2] table 4."""
    return DiT(size=(32, 32), train=_recipe(7_000_000), **IMAGENET)


def dit_xl_2_512() -> DiT:
    """Return DiT-XL/2 for 512 px [2] section 5.1: 3M updates."""
    return evolve(dit_xl_2_256(), size=(64, 64), train=_recipe(3_000_000))


def dit_s_1_256() -> DiT:
    """Return a DiT-S without patches, DiffuSSM-S's counterpart on the same positions."""
    return evolve(dit_xl_2_256(), width=384, depth=12, heads=6, patch=1)


def diffussm_denoiser() -> DiffuSsm:
    """Return the laptop-size DiffuSSM: 8x8x4 latents of 32 px."""
    recipe = Recipe(optimizer="adam", lr=2e-3, betas=(0.9, 0.99), warmup=100, clip=1.0, ema=0.995, batch=32, steps=2800)
    return DiffuSsm(width=96, depth=6, train=recipe, **LAPTOP)


def diffussm_denoiser_pixel() -> DiffuSsm:
    """Return the same on the 1024 pixels of a picture, without an autoencoder."""
    small = diffussm_denoiser()
    return evolve(small, channels=3, size=(32, 32), bounded=True, train=evolve(small.train, batch=16))


def diffussm_denoiser_tiny() -> DiffuSsm:
    """Return a DiffuSSM for tests."""
    return DiffuSsm(width=16, depth=2, state=8, **TINY)


def dit_denoiser() -> DiT:
    """Return the laptop-size DiT, DiffuSSM's yardstick: as many parameters, without patches."""
    return DiT(width=96, depth=7, heads=4, patch=1, train=diffussm_denoiser().train, **LAPTOP)


def dit_denoiser_tiny() -> DiT:
    """Return a DiT for tests."""
    return DiT(width=16, depth=2, heads=2, **TINY)

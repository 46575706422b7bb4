"""Imagen as whole systems: which text encoder and denoisers make a cascade. Imports no torch.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding.
    arXiv:2205.11487
"""

from attrs import evolve

from zoo.diffusion.config import Diffusing
from zoo.parts import Ref
from zoo.systems import Cascade, StageSampling

FEW = Diffusing(sampler="dpm++", steps=20, guidance=3.0, threshold="static")
"""Of the laptop's base: what README.md says."""
ENLARGING = evolve(FEW, guidance=1.0, level=0.1)
"""Of the laptop's other stages."""


def imagen() -> Cascade:
    """Laptop size, three stages up to 64 px: trains on the embedded data in minutes on two CPU cores."""
    return Cascade(
        image_size=64,
        base_size=16,
        tokenizer=Ref("bpe-shapes", "tokenizer"),
        text_encoder=Ref("clip-text", "text_encoder"),
        train_text=True,
        base=Ref("imagen-base", "denoiser"),
        sr32=Ref("imagen-sr32", "denoiser"),
        sr64=Ref("imagen-sr64", "denoiser"),
        sampling=StageSampling(base=FEW, sr32=ENLARGING, sr64=evolve(ENLARGING, steps=10)),
    )


def imagen_tiny() -> Cascade:
    """For tests: every part under a million parameters."""
    few = Diffusing(sampler="dpm++", steps=3)
    return Cascade(
        image_size=32,
        base_size=16,
        tokenizer=Ref("bpe-tiny", "tokenizer"),
        text_encoder=Ref("t5-tiny", "text_encoder"),
        train_text=True,
        base=Ref("imagen-base-tiny", "denoiser"),
        sr32=Ref("imagen-sr-tiny", "denoiser"),
        sampling=StageSampling(base=few, sr32=few),
    )


def imagen_1024() -> Cascade:
    """The paper's system [1] sections 2 and F: a frozen T5-XXL and three stages up to 1024 px.

    Guidance is that of its best FID, 1.35 and 8; step counts are nowhere stated.
    """
    base, above = Diffusing(guidance=1.35), Diffusing(guidance=8.0)
    return Cascade(
        image_size=1024,
        base_size=64,
        tokenizer=Ref("sentencepiece-t5", "tokenizer"),
        text_encoder=Ref("t5-v1.1-xxl", "text_encoder"),
        base=Ref("imagen-base-64", "denoiser"),
        sr256=Ref("imagen-sr-256", "denoiser"),
        sr1024=Ref("imagen-sr-1024", "denoiser"),
        sampling=StageSampling(base=base, sr256=above, sr1024=above),
    )

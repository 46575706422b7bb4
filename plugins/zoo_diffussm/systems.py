"""DiffuSSM and DiT as whole systems: which latent and text encoder they work with. Imports no torch.

[1] J. Yan, J. Gu, A. Rush: Diffusion models without attention. arXiv:2311.18257
[2] W. Peebles, S. Xie: Scalable diffusion models with transformers. arXiv:2212.09748
"""

from attrs import evolve

from zoo.diffusion.config import Diffusing
from zoo.parts import Ref
from zoo.systems import Cascade, StageSampling

FEW = Diffusing(sampler="dpm++", steps=20, guidance=2.0, threshold="off")
"""Of laptop systems: what README.md says."""


def diffussm() -> Cascade:
    """Laptop size: 32 px from captions, in the latents of a small autoencoder; trains in minutes on two CPU cores."""
    return Cascade(
        image_size=32,
        base_size=32,
        classes=24,
        tokenizer=Ref("bpe-shapes", "tokenizer"),
        text_encoder=Ref("clip-text", "text_encoder"),
        train_text=True,
        latent=Ref("kl", "latent"),
        base=Ref("diffussm-denoiser", "denoiser"),
        sampling=StageSampling(base=FEW),
        data="shapes:n=32768",
    )


def dit() -> Cascade:
    """The same with a DiT of as many parameters in DiffuSSM's place: the yardstick."""
    return evolve(diffussm(), base=Ref("dit-denoiser", "denoiser"))


def diffussm_tiny() -> Cascade:
    """For tests."""
    return evolve(
        diffussm(), image_size=16, base_size=16, tokenizer=Ref("bpe-tiny", "tokenizer"),
        text_encoder=Ref("t5-tiny", "text_encoder"), latent=Ref("kl-tiny", "latent"),
        base=Ref("diffussm-denoiser-tiny", "denoiser"), sampling=StageSampling(base=evolve(FEW, steps=4)),
    )  # fmt: skip


def dit_tiny() -> Cascade:
    """The same for tests."""
    return evolve(diffussm_tiny(), base=Ref("dit-denoiser-tiny", "denoiser"))


def diffussm_256() -> Cascade:
    """The paper's system [1] section 5: DiffuSSM-XL in the latents of 256 px, labels of ImageNet, 250 steps."""
    return Cascade(
        image_size=256,
        base_size=256,
        classes=1000,
        latent=Ref("kl-f8", "latent"),
        base=Ref("diffussm-xl-256", "denoiser"),
        sampling=StageSampling(base=Diffusing(steps=250, threshold="off")),
    )


def diffussm_512() -> Cascade:
    """The same for 512 px."""
    return evolve(diffussm_256(), image_size=512, base_size=512, base=Ref("diffussm-xl-512", "denoiser"))


def dit_256() -> Cascade:
    """DiT-XL/2 for 256 px [2]."""
    return evolve(diffussm_256(), base=Ref("dit-xl-2-256", "denoiser"))

"""DALL-E as whole systems: which tokenizer, codebook, prior and reranker belong together. Imports no torch.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv 2102.12092.
"""

import attrs

from zoo.parts import Ref
from zoo.systems import Autoregressive, Sampling


def dalle() -> Autoregressive:
    """Laptop size: trains on the embedded data in minutes on two CPU cores."""
    return Autoregressive(
        image_size=32,
        tokenizer=Ref("bpe-shapes", "tokenizer"),
        codebook=Ref("dvae", "codebook"),
        prior=Ref("dalle-prior", "prior"),
        reranker=Ref("clip", "reranker"),
        sampling=Sampling(temperature=0.85, guidance=1.5),
    )


def dalle_tiny() -> Autoregressive:
    """For tests: every part under a million parameters."""
    return Autoregressive(
        image_size=32,
        tokenizer=Ref("bpe-tiny", "tokenizer"),
        codebook=Ref("dvae-tiny", "codebook"),
        prior=Ref("dalle-prior-tiny", "prior"),
        reranker=Ref("clip-tiny", "reranker"),
    )


def dalle_12b() -> Autoregressive:
    """The paper's system [1] section 2; no reranker unless asked for one, candidates at temperature 1."""
    return Autoregressive(
        image_size=256,
        tokenizer=Ref("bpe-16384", "tokenizer"),
        codebook=Ref("dvae-8192", "codebook"),
        prior=Ref("dalle-12b-prior", "prior"),
        sampling=Sampling(temperature=1.0),
    )


def dalle_5_6b() -> Autoregressive:
    """The paper's system around its transformer of 5.6 billion parameters."""
    return attrs.evolve(dalle_12b(), prior=Ref("dalle-5.6b-prior", "prior"))


def dalle_2_8b() -> Autoregressive:
    """The paper's system around its transformer of 2.8 billion parameters."""
    return attrs.evolve(dalle_12b(), prior=Ref("dalle-2.8b-prior", "prior"))

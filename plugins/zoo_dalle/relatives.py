"""The open relatives of DALL-E whose weights are public, as variants of its transformer. Imports no torch.

[1] kakaobrain: minDALL-E. github.com/kakaobrain/minDALL-E, configs/dalle-1.3B.yaml and dalle/utils/config.py
[2] ai-forever: ruDALL-E. github.com/ai-forever/ru-dalle, rudalle/dalle/__init__.py, "Malevich"
[3] M. Ding et al.: CogView. arXiv:2105.13290
"""

import attrs

from zoo.parts import Recipe, Ref
from zoo.systems import Autoregressive, Sampling
from zoo_dalle.configs import DallePrior


def mindalle_1_3b_prior() -> DallePrior:
    """Return minDALL-E's transformer [1]: 42 layers that see all, 64 caption tokens, 16x16 codes of a VQGAN.

    The authors train it on one embedding a position, plain heads, and padded captions whose pads are tokens like any
    other. Its recipe is that of their fine-tuning configuration: the one of the pre-training is not published.
    """
    return DallePrior(
        width=1536,
        depth=42,
        heads=24,
        pattern="full",
        positions="each",
        head_bias=False,
        first_token="given",
        cond_drop=0.0,
        vocab_size=16384,
        grids=((16, 16),),
        text_vocab=16384,
        text_length=64,
        train=Recipe(lr=1e-4, betas=(0.9, 0.99), weight_decay=1e-4, clip=1.0, batch=512, steps=100_000),
    )


def rudalle_1_3b_prior() -> DallePrior:
    """Return ruDALL-E Malevich's transformer [2]: 24 layers, 128 caption tokens, 32x32 codes.

    DALL-E's masks with a last window that ends at the picture's edges, a norm before and after every branch [3], and
    one more before the heads. Its recipe is DALL-E's: its own is not published.
    """
    return DallePrior(
        width=2048,
        depth=24,
        heads=16,
        pattern="sparse-cut",
        block="sandwich",
        gelu="tanh",
        final_norms=2,
        first_token="given",
        cond_drop=0.0,
        vocab_size=8192,
        grids=((32, 32),),
        text_vocab=16384,
        text_length=128,
        train=Recipe(
            lr=4.5e-4, betas=(0.9, 0.96), weight_decay=4.5e-2, warmup=5_000, clip=4.0, batch=1024, steps=430_000
        ),
    )


def mindalle_prior_tiny() -> DallePrior:
    """Return minDALL-E's layout in small, for tests."""
    return attrs.evolve(
        mindalle_1_3b_prior(), width=32, depth=3, heads=2, vocab_size=32, grids=((4, 4),), text_vocab=384,
        text_length=32, train=Recipe(lr=3e-3, warmup=5, batch=8, steps=60),
    )  # fmt: skip


def rudalle_prior_tiny() -> DallePrior:
    """Return ruDALL-E's layout in small, for tests."""
    return attrs.evolve(
        rudalle_1_3b_prior(), width=32, depth=4, heads=2, conv_kernel=3, vocab_size=32, grids=((4, 4),),
        text_vocab=384, text_length=32, train=Recipe(lr=3e-3, warmup=5, batch=8, steps=60),
    )  # fmt: skip


def mindalle_1_3b() -> Autoregressive:
    """Return minDALL-E [1]. Its sampling keeps the 256 most probable codes."""
    return Autoregressive(
        image_size=256,
        tokenizer=Ref("bpe-mindalle", "tokenizer"),
        codebook=Ref("vqgan-f16-16384", "codebook"),
        prior=Ref("mindalle-1.3b-prior", "prior"),
        sampling=Sampling(temperature=1.0, top_k=256),
    )


def rudalle_1_3b() -> Autoregressive:
    """Return ruDALL-E Malevich [2]."""
    return Autoregressive(
        image_size=256,
        tokenizer=Ref("bpe-rudalle", "tokenizer"),
        codebook=Ref("vqgan-gumbel-f8-8192", "codebook"),
        prior=Ref("rudalle-1.3b-prior", "prior"),
        sampling=Sampling(temperature=1.0, top_k=2048, top_p=0.995),
    )

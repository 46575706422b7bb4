"""The named sizes of ImageGPT's parts. Imports no torch.

[1] M. Chen et al.: Generative Pretraining from Pixels. ICML 2020; V2 of the text, cdn.openai.com
[2] github.com/openai/image-gpt, README.md: heads of the published sizes
"""

from attrs import evolve

from zoo.parts import Recipe
from zoo_imagegpt.configs import ImageGptPrior, Palette

EPOCH = 10_009
"""Updates of one pass over ImageNet's 1 281 167 pictures at batch 128: the warm-up [1] section 3.4."""


def palette_512() -> Palette:
    """Return the paper's palette: 512 colours, 9 bits a pixel [1] section 3.2."""
    return Palette()


def palette() -> Palette:
    """Return the laptop's palette, 64 colours: what drawn pictures need, with a head eight times cheaper."""
    return Palette(vocab_size=64, pictures=1024, pixels=2**17)


def palette_tiny() -> Palette:
    """Return a palette for tests."""
    return Palette(vocab_size=16, pictures=32, pixels=2**12)


def _recipe(lr: float) -> Recipe:
    """Return the paper's recipe: Adam, one epoch of warm-up, cosine to 0, no decay, no dropout [1] section 3.4."""
    return Recipe(
        optimizer="adam",
        lr=lr,
        betas=(0.9, 0.95),
        warmup=EPOCH,
        schedule="cosine",
        clip=None,
        batch=128,
        steps=1_000_000,
        transform="imagegpt",
    )


def imagegpt_s_prior() -> ImageGptPrior:
    """Return iGPT-S, 76 571 648 parameters [1] section 3.3, [2]; learning rates are [1] table 5's."""
    return ImageGptPrior(width=512, depth=24, heads=8, vocab_size=512, grids=((32, 32),), train=_recipe(0.003))


def imagegpt_m_prior() -> ImageGptPrior:
    """Return iGPT-M, 455 157 760 parameters, heads of 128 [1] section 3.3, [2]."""
    return evolve(imagegpt_s_prior(), width=1024, depth=36)


def imagegpt_l_prior() -> ImageGptPrior:
    """Return iGPT-L, 1 362 250 752 parameters, heads of 96 [1] section 3.3, [2]."""
    return evolve(imagegpt_s_prior(), width=1536, depth=48, heads=16, train=_recipe(0.001))


def imagegpt_l_48_prior() -> ImageGptPrior:
    """Return iGPT-L for 48 px, with that size's learning rate [1] table 5."""
    return evolve(imagegpt_l_prior(), grids=((48, 48),), train=_recipe(0.01))


def imagegpt_xl_64_prior() -> ImageGptPrior:
    """Return iGPT-XL for 64 px, 6 810 875 904 parameters [1] section 3.3.

    Its heads are nowhere stated; 32 of 96, as wide as those of iGPT-L. An epoch has twice as many updates at batch 64.
    """
    recipe = evolve(_recipe(0.0003), warmup=2 * EPOCH, batch=64, steps=2_000_000)
    return evolve(imagegpt_l_prior(), width=3072, depth=60, heads=32, grids=((64, 64),), train=recipe)


def imagegpt_xl_prior() -> ImageGptPrior:
    """Return iGPT-XL for 32 px: the 6 801 438 720 parameters that the paper prints, which count 1024 positions."""
    return evolve(imagegpt_xl_64_prior(), grids=((32, 32),))


def imagegpt_s_bert_prior() -> ImageGptPrior:
    """Return iGPT-S trained on masked codes, with that objective's learning rate [1] table 5."""
    return evolve(imagegpt_s_prior(), objective="bert", train=_recipe(0.01))


def imagegpt_m_bert_prior() -> ImageGptPrior:
    """Return iGPT-M trained on masked codes [1] table 5."""
    return evolve(imagegpt_m_prior(), objective="bert", train=_recipe(0.003))


def imagegpt_l_bert_prior() -> ImageGptPrior:
    """Return iGPT-L trained on masked codes [1] table 5."""
    return evolve(imagegpt_l_prior(), objective="bert", train=_recipe(0.001))


def imagegpt_prior() -> ImageGptPrior:
    """Return the laptop-size transformer: 1024 positions, about ten minutes on two CPU cores.

    Many narrow heads: one has to find the pixel above, others those beside it. With heads of 64, as iGPT-S has, there
    is one in a network this narrow, and it needs twice the updates. A picture is a thousand predictions: two will do.
    """
    return ImageGptPrior(
        width=96,
        depth=6,
        heads=6,
        vocab_size=64,
        grids=((32, 32),),
        train=Recipe(optimizer="adam", lr=3e-3, betas=(0.9, 0.95), warmup=60, clip=1.0, ema=0.99, batch=2, steps=3000),
    )


def imagegpt_bert_prior() -> ImageGptPrior:
    """Return the laptop-size transformer trained on masked codes."""
    return evolve(imagegpt_prior(), objective="bert")


def imagegpt_prior_tiny() -> ImageGptPrior:
    """Return a transformer for tests: 64 positions."""
    base = imagegpt_prior()
    recipe = evolve(base.train, batch=8, steps=40, warmup=4)
    return evolve(base, width=32, depth=2, heads=2, vocab_size=16, grids=((8, 8),), train=recipe)


def imagegpt_prior_tiny_bert() -> ImageGptPrior:
    """Return the same, trained on masked codes."""
    return evolve(imagegpt_prior_tiny(), objective="bert")

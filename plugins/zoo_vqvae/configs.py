"""Configs of VQ-VAE, its FSQ twin, the continuous VAE and the gated PixelCNN, and their variants.

[1] A. van den Oord, O. Vinyals, K. Kavukcuoglu: Neural discrete representation learning. arXiv:1711.00937.
[2] The authors' code: github.com/google-deepmind/sonnet, `sonnet/src/nets/vqvae.py` and its example notebook.
[3] F. Mentzer et al.: Finite scalar quantization: VQ-VAE made simple. arXiv:2309.15505.
[4] A. van den Oord et al.: Conditional image generation with PixelCNN decoders. arXiv:1606.05328.
"""

import math
from typing import Any, Literal

import attrs
from attrs import evolve
from attrs import validators as v

from zoo.cost import Cost
from zoo.errors import ConfigError
from zoo.parts import Facts, Grid, Recipe, Ref
from zoo_vqvae import cost


def _all_at_least(least: int) -> Any:
    """Validate a non-empty tuple of integers."""

    def check(_: Any, field: Any, value: tuple[int, ...]) -> None:
        if not value or any(x < least for x in value):
            raise ValueError(f"{field.name}: must be a non-empty tuple of integers of at least {least}, not {value}")

    return check


def _odd(_: Any, field: Any, value: int) -> None:
    if value < 3 or value % 2 == 0:
        raise ValueError(f"{field.name}: must be odd and at least 3, not {value}")


@attrs.frozen(kw_only=True)
class Net:
    """Encoder and decoder: strided convolutions, a residual stack, and their mirror image."""

    widths: tuple[int, ...] = attrs.field(default=(64, 128), validator=_all_at_least(1))
    """Channels after each 4x4 convolution of stride 2; their number decides the reduction, 2 to its power. [2]"""
    residual_hidden: int = attrs.field(default=32, validator=v.ge(1))
    """Channels inside a residual block: ReLU, 3x3, ReLU, 1x1. [2]"""
    residual_layers: int = attrs.field(default=2, validator=v.ge(0))
    """Residual blocks of the encoder, and as many of the decoder. [1] §4.1"""
    mix: bool = True
    """A 3x3 convolution in front of each residual stack, as in [2]; the paper's text has none."""

    @property
    def factor(self) -> int:
        """Pixels per code, along one side."""
        return 2 ** len(self.widths)

    def grid(self, height: int, width: int) -> Grid:
        """Return the grid of a picture of this size.

        Raises:
            ConfigError: a side is not a multiple of `factor`.
        """
        if height % self.factor or width % self.factor or not height or not width:
            raise ConfigError(f"image_size: {height}x{width} pixels must be multiples of {self.factor}")
        return height // self.factor, width // self.factor


@attrs.frozen(kw_only=True)
class Pixels:
    """What the decoder says of a pixel: p(x|z)."""

    likelihood: Literal["gaussian", "softmax"] = "gaussian"
    """"gaussian" trains by squared error; "softmax" has 256 values a channel, as on CIFAR-10 (said by the authors)."""
    data_variance: float = attrs.field(default=0.06, validator=v.gt(0))
    """Gaussian only: what the mean squared error is divided by in the loss, pixels in [0, 1]. [2]"""
    deviation: float = attrs.field(default=0.05, validator=v.gt(0))
    """Gaussian only: standard deviation of p(x|z) in bits per dimension (and in a VAE's loss), pixels in [0, 1].
    The best value is the root mean square error, which training reports as `rmse`."""


@attrs.frozen(kw_only=True)
class VqVae:
    """A VQ-VAE. [1]"""

    net: Net = Net()
    """Encoder and decoder."""
    pixels: Pixels = Pixels()
    """Likelihood of the decoder."""
    vocab_size: int = attrs.field(default=512, validator=v.ge(2))
    """Codes in a codebook, K. [1] §4.1"""
    width: int = attrs.field(default=64, validator=v.ge(1))
    """Entries of a code, D. [2]"""
    books: int = attrs.field(default=1, validator=v.ge(1))
    """Codebooks per position, each with its own grid; 10 on CIFAR-10. [1] §4.1"""
    codebook: Literal["gradient", "ema"] = "gradient"
    """How codes learn: from the second term of [1] eq. (3), or as running means, [1] appendix A.1."""
    estimator: Literal["straight-through", "rotation"] = "straight-through"
    """How the gradient passes the quantiser: [1] §3.1, or the rotation trick (arXiv:2410.06424)."""
    beta: float = attrs.field(default=0.25, validator=v.ge(0))
    """Weight of the commitment term. [1] §3.2"""
    decay: float = attrs.field(default=0.99, validator=v.and_(v.ge(0), v.lt(1)))
    """Decay γ of the running means and of the counts that find dead codes. [1] appendix A.1"""
    revive_below: float = attrs.field(default=0.03, validator=v.and_(v.ge(0), v.lt(1)))
    """A code chosen less often than this share of the mean is moved to a vector of the batch; 0: never."""
    image_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Side of the square picture in pixels; decided by the system."""
    train: Recipe = Recipe()
    """How it is trained."""

    @property
    def channels(self) -> int:
        """Channels in front of the quantiser."""
        return self.books * self.width

    def facts(self, image_size: int) -> Facts:
        """Return vocabulary and grids."""
        grid = self.net.grid(image_size, image_size)
        return Facts(vocab_size=self.vocab_size, grids=(grid,) * self.books)

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.vqvae(self)


@attrs.frozen(kw_only=True)
class FsqVae:
    """The same autoencoder with finite scalar quantisation. [3]"""

    net: Net = Net()
    """Encoder and decoder."""
    pixels: Pixels = Pixels()
    """Likelihood of the decoder."""
    levels: tuple[int, ...] = attrs.field(default=(8, 6, 5), validator=_all_at_least(2))
    """Values of each channel; their product is the vocabulary. (8, 6, 5) makes 240, (8, 8, 8, 6, 5) 15 360. [3]"""
    image_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Side of the square picture in pixels; decided by the system."""
    train: Recipe = Recipe()
    """How it is trained."""

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return math.prod(self.levels)

    @property
    def channels(self) -> int:
        """Channels in front of the quantiser."""
        return len(self.levels)

    def facts(self, image_size: int) -> Facts:
        """Return vocabulary and grid."""
        return Facts(vocab_size=self.vocab_size, grids=(self.net.grid(image_size, image_size),))

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.fsqvae(self)


@attrs.frozen(kw_only=True)
class Vae:
    """A continuous VAE with the same encoder and decoder, a latent of its own and the yardstick of [1] §4.1."""

    net: Net = Net()
    """Encoder and decoder."""
    pixels: Pixels = Pixels()
    """Likelihood of the decoder."""
    channels: int = attrs.field(default=8, validator=v.ge(1))
    """Channels of the latent."""
    beta: float = attrs.field(default=1.0, validator=v.ge(0))
    """Weight of the KL term; 1 is the bound itself."""
    image_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Side of the square picture in pixels; decided by the system."""
    train: Recipe = Recipe()
    """How it is trained."""

    def facts(self, image_size: int) -> Facts:
        """Return channels and size."""
        return Facts(channels=self.channels, size=self.net.grid(image_size, image_size), bounded=False)

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.vae(self)


@attrs.frozen(kw_only=True)
class VqLatent:
    """A VQ-VAE's vectors in front of the quantiser as a continuous latent; decoding quantises first."""

    codebook: Ref = Ref("vqvae", "codebook")
    """The VQ-VAE (or its FSQ twin)."""
    image_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Side of the square picture in pixels; decided by the system."""

    def facts(self, image_size: int) -> Facts:
        """Return channels and size."""
        size = self.codebook.facts(image_size).grids[0]
        return Facts(channels=self.codebook.channels, size=size, bounded=False)

    def cost(self, batch: int = 1) -> Cost:
        """Return nothing: its parameters are the codebook's, a part of its own."""
        return Cost()


@attrs.frozen(kw_only=True)
class PixelCnn:
    """A gated PixelCNN over one grid of codes. [4]"""

    width: int = attrs.field(default=64, validator=v.ge(1))
    """Channels of each stack."""
    layers: int = attrs.field(default=6, validator=v.ge(1))
    """Gated layers, the masked first one included. [1] names no number."""
    kernel: int = attrs.field(default=5, validator=_odd)
    """n of the n x n receptive field one layer adds, halved by the mask. [4] §2.2"""
    head: int = attrs.field(default=128, validator=v.ge(1))
    """Hidden channels between the last layer and the logits."""
    conditioning: Literal["bias", "map"] = "map"
    """"bias": one vector for all places, [4] eq. (4); "map": a vector for each place, made of condition and place,
    [4] eq. (5)."""
    reads: Literal["ids", "label", "nothing"] = "ids"
    """What it is conditioned on: pooled caption tokens, a class, or nothing."""
    cond_drop: float = attrs.field(default=0.1, validator=v.and_(v.ge(0), v.lt(1)))
    """Share of the training samples whose condition is replaced by the learned null condition; 0: no guidance."""
    vocab_size: int | None = attrs.field(default=None, validator=v.optional(v.ge(2)))
    """Codes, K; decided by the codebook."""
    grids: tuple[Grid, ...] | None = None
    """The one grid (rows, columns); decided by the codebook."""
    text_vocab: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Pieces of the tokenizer; decided by it."""
    text_length: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Tokens of a caption; decided by the tokenizer."""
    classes: int | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Classes of the labels; decided by the data."""
    train: Recipe = Recipe()
    """How it is trained."""

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no part is bound to a prior."""
        return Facts()

    def cost(self, batch: int = 1) -> Cost:
        """Return what it costs; see `zoo.cost`. The global batch changes nothing."""
        return cost.pixelcnn(self)


_PAPER = Recipe(optimizer="adam", lr=2e-4, schedule="constant", clip=None, batch=128, steps=250_000)
"""[1] §4.1: Adam, 2e-4, 250 000 steps, batch 128."""


def vqvae() -> VqVae:
    """Laptop size: 32 px, 8x8 codes of 512."""
    return VqVae(
        net=Net(widths=(32, 96), residual_hidden=32),
        vocab_size=512,
        image_size=32,
        train=Recipe(optimizer="adam", lr=2e-3, warmup=50, batch=32, steps=2000),
    )


def vqvae_tiny() -> VqVae:
    """For tests: 64 codes."""
    net = Net(widths=(16, 32), residual_hidden=16, residual_layers=1)
    return evolve(vqvae(), net=net, vocab_size=64, width=16, train=evolve(vqvae().train, steps=100))


def vqvae_sonnet() -> VqVae:
    """The example of [2] on CIFAR-10: 128/32/2, D=64, K=512, codes as running means."""
    recipe = Recipe(optimizer="adam", lr=3e-4, schedule="constant", clip=None, batch=32, steps=50_000)
    return VqVae(codebook="ema", image_size=32, train=recipe)


def vqvae_cifar10() -> VqVae:
    """CIFAR-10 in the paper's likelihood table: 256 units, 8x8x10 codes of 512, 256-way softmax. [1] §4.1"""
    net = Net(widths=(256, 256), residual_hidden=256, residual_layers=2, mix=False)
    return VqVae(net=net, books=10, pixels=Pixels(likelihood="softmax"), image_size=32, train=_PAPER)


def vqvae_imagenet() -> VqVae:
    """ImageNet at 128 px: 32x32x1 codes of 512. [1] §4.2"""
    net = Net(widths=(256, 256), residual_hidden=256, residual_layers=2, mix=False)
    return VqVae(net=net, image_size=128, train=evolve(_PAPER, transform="crop"))


def vqvae_fsq() -> FsqVae:
    """The laptop net with 240 codes of FSQ."""
    return FsqVae(net=vqvae().net, image_size=32, train=vqvae().train)


def vqvae_latent() -> VqLatent:
    """The laptop VQ-VAE as a latent."""
    return VqLatent(image_size=32)


def vae() -> Vae:
    """The laptop net with a continuous latent."""
    return Vae(net=vqvae().net, image_size=32, train=vqvae().train)


def pixelcnn() -> PixelCnn:
    """Laptop size, on 8x8 codes and captions."""
    return PixelCnn(
        vocab_size=512,
        grids=((8, 8),),
        text_vocab=256,
        text_length=32,
        classes=24,
        train=Recipe(lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01, warmup=50, batch=64, steps=1000),
    )


def pixelcnn_tiny() -> PixelCnn:
    """For tests: 64 codes on a 4x4 grid."""
    train = evolve(pixelcnn().train, steps=100)
    return evolve(pixelcnn(), width=16, layers=3, head=32, vocab_size=64, grids=((4, 4),), text_length=16, train=train)

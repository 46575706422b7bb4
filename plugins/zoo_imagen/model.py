"""Imagen's denoisers: a U-Net with what conditions it.

Letters: B batch, C channels of z, H W its sides, T text tokens, D width of the text, E width of the embedding.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
[2] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor, nn

from zoo.diffusion import losses
from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond, Losses, Prediction
from zoo.nn.cached import dropped
from zoo.nn.conditioning import Pool, TimeEmbedding, activation, bounded, label_or_null, text_or_null
from zoo.nn.precision import wide
from zoo.rng import Rng
from zoo_imagen import configs
from zoo_imagen.condition import TextKeys
from zoo_imagen.efficient import EfficientUNet
from zoo_imagen.unet import UNet

Config = configs.UNet | configs.EfficientUNet


def unet(config: configs.UNet) -> Denoiser:
    """Return the base model's denoiser."""
    return Denoiser(config, UNet)


def efficient_unet(config: configs.EfficientUNet) -> Denoiser:
    """Return the denoiser of super-resolution."""
    return Denoiser(config, EfficientUNet)


@attrs.frozen(eq=False)
class Condition:
    """What of a condition does not change from step to step."""

    embedding: Tensor | None
    """[B,E] of caption or label, and of the level of `low`."""
    keys: tuple[Tensor, ...]
    """[B,T,2I] of each attention that reads text, in order."""
    mask: Tensor | None
    """[B,T], True where text is read; None: everywhere, or there is no text."""
    low: Tensor | None
    """[B,C,H,W] the picture of the stage below."""


class Denoiser(nn.Module):
    """A `zoo.interfaces.Denoiser` with a loss.

    The null condition is a caption of one token whose embedding is zero [1] section 2.2, or a label of its own [2].

    Args:
        config: its sizes, bound.
        net: the class of its network.
    """

    def __init__(self, config: Config, net: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.prediction: str = config.prediction
        self.schedule, self.bounded = config.schedule, bool(config.bounded)
        channels, reads_text = config.channels or 0, config.reads == "text"
        text_width = config.text_width if reads_text else None
        self.time = TimeEmbedding(config.width, config.time_width, config.activation)
        self.level = TimeEmbedding(config.width, config.time_width, config.activation) if config.low else None
        self.pool = Pool(text_width, config.time_width, config.pool_heads) if text_width else None
        self.label = nn.Embedding((config.classes or 0) + 1, config.time_width) if config.reads == "label" else None
        narrowed = config.text_channels is not None and config.text_channels != text_width and text_width is not None
        self.text = nn.Linear(text_width or 0, config.text_channels or 0) if narrowed else None
        n_in, n_out = channels * (2 if config.low else 1), channels * (2 if config.variance == "learned" else 1)
        self.net = net(config, n_in, n_out, config.text_channels or text_width if reads_text else None)
        self.activation = activation(config.activation)

    def predict(self, z: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        """Return the prediction for z [B,C,H,W] at logsnr [B].

        Raises:
            PartMismatch: the condition lacks what the config reads, or the network's levels do not divide z's sides.
        """
        return self.conditioned(cond)(z, logsnr)

    def conditioned(self, cond: Cond) -> Callable[[Tensor, Tensor], Prediction]:
        """Return `predict` of this condition, with all that depends on it alone computed once.

        Raises:
            PartMismatch: the condition lacks what the config reads.
        """
        fixed = self._fixed(cond)
        return lambda z, logsnr: self._predict(z, logsnr, fixed)

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return the error of the prediction at random noise levels [1] eq. (1); see `zoo.diffusion.losses`.

        Raises:
            PartMismatch: there is no z, or the condition lacks what the config reads.
        """
        if batch.z is None:
            raise PartMismatch("Imagen's denoiser trains on pictures or latents `z`, and this batch has none")
        if self.training:  # judged with its condition
            cond = dropped(cond, self.config.cond_drop, rng, batch.z.device)
        return losses.denoising(self, batch.z, cond, rng=rng, weighting=self.config.weighting)

    def _predict(self, z: Tensor, logsnr: Tensor, fixed: Condition) -> Prediction:
        self._check(z, fixed)
        x = z if fixed.low is None else torch.cat((z, fixed.low.to(z.dtype)), dim=1)
        dtype = self.time.first.weight.dtype
        embedding = self.time(self.schedule.time(logsnr))
        if fixed.embedding is not None:
            embedding = embedding + fixed.embedding
        x = x.to(dtype).contiguous(memory_format=torch.channels_last)
        y = wide(self.net(x, self.activation(embedding), iter(fixed.keys), fixed.mask))
        if self.config.variance == "fixed":
            return Prediction(y)
        mean, variance = y.chunk(2, dim=1)
        return Prediction(mean, bounded(variance))

    def _fixed(self, cond: Cond) -> Condition:
        """Return what the condition alone decides."""
        found: list[Tensor] = []
        keys: tuple[Tensor, ...] = ()
        mask = None
        if self.pool is not None:
            text, mask = text_or_null(cond, self.pool.position.dtype)
            found.append(self.pool(text, mask))
            read = text if self.text is None else self.text(text)
            keys = tuple(layer(read) for layer in self.net.modules() if isinstance(layer, TextKeys))
        if self.label is not None:
            found.append(self.label(label_or_null(cond, self.config.classes or 0)))
        if self.level is not None:
            if cond.low is None or cond.low_level is None:
                raise PartMismatch("this stage enlarges a picture, and the condition has no `low` or no `low_level`")
            found.append(self.level(self.schedule.time(cond.low_level)))
        embedding = sum(found[1:], found[0]) if found else None
        return Condition(embedding, keys, mask, cond.low if self.level is not None else None)

    def _check(self, z: Tensor, fixed: Condition) -> None:
        factor, (h, w) = self.config.factor, z.shape[2:]
        if h % factor or w % factor:
            raise PartMismatch(f"z has sides {h}x{w}, and this denoiser's levels need multiples of {factor}")
        if fixed.low is not None and fixed.low.shape != z.shape:
            raise PartMismatch(f"`low` has shape {list(fixed.low.shape)} and z {list(z.shape)}; enlarge it before")

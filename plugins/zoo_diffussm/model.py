"""The denoiser: a stack of blocks with what conditions it.

Letters: B batch, C channels of z, H W its sides, J places of the residual stream, D width, T text tokens.

[1] J. Yan, J. Gu, A. Rush: Diffusion models without attention. arXiv:2311.18257
[2] W. Peebles, S. Xie: Scalable diffusion models with transformers. arXiv:2212.09748
[3] P. Dhariwal, A. Nichol: Diffusion models beat GANs on image synthesis. arXiv:2105.05233
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.diffusion import losses
from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond, Losses, Prediction
from zoo.nn.cached import dropped
from zoo.nn.conditioning import Pool, TimeEmbedding, bounded, label_or_null, text_or_null
from zoo.nn.precision import wide
from zoo.nn.s4d import param_groups
from zoo.parts import Recipe
from zoo.rng import Rng
from zoo_diffussm import configs
from zoo_diffussm.attention import dit_blocks
from zoo_diffussm.cost import WAVES
from zoo_diffussm.layers import Head, Input, Labels, Small
from zoo_diffussm.ssm import Stack, ssm_blocks

Config = configs.DiffuSsm | configs.DiT

POOL_HEADS = 4
"""Heads of the attention that pools a caption. Neither paper reads captions."""


def diffussm(config: configs.DiffuSsm) -> Denoiser:
    """Return DiffuSSM's denoiser."""
    return Denoiser(config, Stack(ssm_blocks(config), config.width if config.skips == "long" else None))


def dit(config: configs.DiT) -> Denoiser:
    """Return DiT's denoiser."""
    return Denoiser(config, Stack(dit_blocks(config)))


@attrs.frozen(eq=False)
class Condition:
    """What of a condition does not change from step to step."""

    embedding: Tensor | None
    """[B,D] of caption or label, and of the level of `low`."""
    prefix: Tensor | None
    """[B,T,D] the caption's tokens, or the label, in front of the picture."""
    mask: Tensor | None
    """[B,T] True where a token is read."""
    low: Tensor | None
    """[B,C,H,W] the picture of the stage below."""


class Denoiser(nn.Module):
    """A `zoo.interfaces.Denoiser` with a loss.

    Args:
        config: its sizes, bound.
        stack: its blocks.
    """

    def __init__(self, config: Config, stack: Stack) -> None:
        super().__init__()
        assert config.channels is not None
        self.config = config
        self.prediction: str = config.prediction
        self.schedule, self.bounded = config.schedule, bool(config.bounded)
        text_width = config.text_width if config.reads == "text" else None
        self.time = TimeEmbedding(WAVES, config.width, "silu", Small)
        self.level = TimeEmbedding(WAVES, config.width, "silu", Small) if config.low else None
        self.pool = Pool(text_width, config.width, POOL_HEADS) if text_width else None
        told = {"text": text_width, "label": config.width}.get(config.reads)
        self.prefix = nn.Linear(told, config.width) if told and config.prefix else None
        self.label = Labels((config.classes or 0) + 1, config.width) if config.reads == "label" else None
        self.input = Input(config)
        self.stack = stack
        self.head = Head(config)

    def param_groups(self, recipe: Recipe) -> list[dict[str, Any]]:
        """Return the optimiser's groups: those of the SSM's parameters have no weight decay and a rate of their own."""
        return param_groups(self, recipe)

    def predict(self, z: Tensor, logsnr: Tensor, cond: Cond) -> Prediction:
        """Return the prediction for z [B,C,H,W] at logsnr [B].

        Raises:
            PartMismatch: the condition lacks what the config reads, a label is out of range, or z has another size.
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
        """Return the error of the prediction at random noise levels [2]; see `zoo.diffusion.losses`.

        Raises:
            PartMismatch: there is no z, or the condition lacks what the config reads.
        """
        if batch.z is None:
            raise PartMismatch("this denoiser trains on pictures or latents `z`, and this batch has none")
        if self.training:  # judged with its condition
            cond = dropped(cond, self.config.cond_drop, rng, batch.z.device)
        return losses.denoising(self, batch.z, cond, rng=rng, weighting=self.config.weighting)

    def _predict(self, z: Tensor, logsnr: Tensor, fixed: Condition) -> Prediction:
        if tuple(z.shape[1:]) != (self.config.channels, *(self.config.size or ())):
            raise PartMismatch(
                f"z has shape {list(z.shape[1:])}, and this denoiser was built for {self.config.channels} channels of "
                f"{self.config.size}"
            )
        embedding = self.time(self.schedule.time(logsnr))
        if fixed.embedding is not None:
            embedding = embedding + fixed.embedding
        told = F.silu(embedding)
        read = z if fixed.low is None else torch.cat((z, fixed.low.to(z.dtype)), dim=1)
        x = self.stack(self.input(read), told, fixed.prefix, fixed.mask)
        y = wide(self.head(x, told))
        if self.config.variance == "fixed":
            return Prediction(y)
        mean, variance = y.chunk(2, dim=1)
        return Prediction(mean, bounded(variance))

    def _fixed(self, cond: Cond) -> Condition:
        """Return what the condition alone decides."""
        found: list[Tensor] = []
        prefix = mask = low = None
        if self.label is not None:
            label = self.label(label_or_null(cond, self.config.classes or 0))
            found.append(label)
            if self.prefix is not None:
                prefix = self.prefix(label)[:, None]
        if self.pool is not None:
            text, mask = text_or_null(cond, self.pool.position.dtype)
            found.append(self.pool(text, mask))
            if self.prefix is not None:
                text, mask = right_aligned(text, mask)
                prefix = self.prefix(text)
        if self.level is not None:
            if cond.low is None or cond.low_level is None:
                raise PartMismatch("this stage enlarges a picture, and the condition has no `low` or no `low_level`")
            found.append(self.level(self.schedule.time(cond.low_level)))
            low = cond.low
        return Condition(sum(found[1:], found[0]) if found else None, prefix, mask, low)


def right_aligned(text: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return text [B,T',D] and mask [B,T'] with each row's tokens last, T' those of the longest row.

    So every caption ends where the picture begins, and its length and the batch's change nothing.
    """
    if mask is None:
        return text, None
    longest = int(mask.sum(1).max())
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)[:, mask.shape[1] - longest :]
    return text.take_along_dim(order[..., None], dim=1), mask.take_along_dim(order, dim=1)

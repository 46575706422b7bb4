"""From a class or a caption to the vector, or the map, that biases every layer of a PixelCNN.

Letters: B batch, S channels, h w code grid, T text tokens.

[1] A. van den Oord et al.: Conditional image generation with PixelCNN decoders. arXiv:1606.05328.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError
from zoo.interfaces import Cond
from zoo_vqvae.configs import PixelCnn as PixelCnnConfig


class Caption(nn.Module):
    """Caption tokens to one vector: each token with its place through an MLP, their mean, a second MLP.

    Without the first MLP a mean of sums would forget which word stood where.
    """

    def __init__(self, vocab_size: int, length: int, width: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, width)
        self.place = nn.Embedding(length, width)
        self.before = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.after = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return [B,S] of ids and mask [B,T]; an empty caption reads as the mean of no tokens, zero."""
        x = self.before(self.token(ids) + self.place.weight[: ids.shape[1]])
        weight = mask.to(x).unsqueeze(-1)
        return self.after((x * weight).sum(1) / weight.sum(1).clamp_min(1))


class Condition(nn.Module):
    """What a prior reads, as [B,S,h,w] or [B,S,1,1].

    Raises:
        ConfigError: a field that decides a table's size is missing.
    """

    def __init__(self, config: PixelCnnConfig, rows: int, columns: int) -> None:
        super().__init__()
        width = config.width
        self.reads, self.droppable = config.reads, config.cond_drop > 0
        self.null = nn.Parameter(torch.randn(width))
        self.source: Caption | nn.Embedding | None = None
        if config.reads == "ids":
            if config.text_vocab is None or config.text_length is None:
                raise ConfigError("text_vocab, text_length: a prior that reads ids is built beside a tokenizer")
            self.source = Caption(config.text_vocab, config.text_length, width)
        elif config.reads == "label":
            if config.classes is None:
                raise ConfigError("classes: a prior that reads labels must know how many there are")
            self.source = nn.Embedding(config.classes, width)
        self.places: nn.Parameter | None = None
        if config.conditioning == "map":
            self.places = nn.Parameter(torch.randn(width, rows, columns))
            self.deconv = nn.Sequential(
                nn.Conv2d(width, 2 * width, 1), nn.GELU(), nn.Conv2d(2 * width, width, 1), nn.GELU()
            )

    def forward(self, cond: Cond, batch: int, drop: Tensor | None) -> Tensor:
        """Return the condition; rows where `drop` [B] is True, or all if nothing is given, get the null condition.

        Raises:
            ConfigError: what the prior reads is not given, and it has not learned to do without.
        """
        vector = self._vector(cond)
        null = self.null.expand(batch, -1)
        if vector is None:
            vector = null
        else:
            # Also with nothing to drop: a parameter that some steps do not touch stalls distributed training.
            drop = null.new_zeros(batch, dtype=torch.bool) if drop is None else drop.to(null.device)
            vector = torch.where(drop[:, None], null, vector)
        s = vector[:, :, None, None]
        return s if self.places is None else self.deconv(s + self.places)

    def _vector(self, cond: Cond) -> Tensor | None:
        given = {"ids": cond.ids, "label": cond.label, "nothing": None}[self.reads]
        if given is None:
            if self.source is not None and not self.droppable:
                raise ConfigError(f"cond.{self.reads}: this prior was trained with cond_drop = 0 and needs it")
            return None
        if isinstance(self.source, Caption):
            return self.source(given, torch.ones_like(given, dtype=torch.bool) if cond.mask is None else cond.mask)
        return None if self.source is None else self.source(given)

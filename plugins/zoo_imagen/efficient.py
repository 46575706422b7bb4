"""Efficient U-Net, the network of super-resolution [1] section B.1.

Letters: B batch, H W sides of z, E width of the embedding, T text tokens.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zoo.nn.residual import Residual
from zoo_imagen import configs
from zoo_imagen.condition import TextKeys
from zoo_imagen.layers import Attention, Conv, Up, residual_block
from zoo_imagen.norm import GroupNorm

SKIP_SCALE = 2**-0.5
"""Factor of what skips a level [1] section B.1."""


class Level(nn.Module):
    """Residual blocks of one width and one size, and attention where there is any.

    Args:
        config: the network's.
        i: the level, 0 the finest.
        text_width: of the text that attention reads; None: it reads none.
    """

    def __init__(self, config: configs.EfficientUNet, i: int, text_width: int | None) -> None:
        super().__init__()
        c, width, kind = config, config.widths[i], config.attention[i]
        blocks = (
            residual_block(width, width, c.time_width, c.groups, c.activation, always=True) for _ in range(c.blocks[i])
        )
        self.blocks = nn.ModuleList(blocks)
        self.text: TextKeys | None = None
        self.attention: Residual | None = None
        if kind != "none":
            inner = 2 * width
            if text_width is not None:
                self.text = TextKeys(text_width, inner, c.text_norm)
            self.attention = Residual(Attention(width, inner, c.heads, c.groups, crossed=kind == "cross"))

    def forward(self, x: Tensor, embedding: Tensor, keys: Iterator[Tensor], mask: Tensor | None) -> Tensor:
        """Return the next [B,C,h,w]; `keys` yields the text keys of each attention that reads some, in order."""
        for block in self.blocks:
            x = block(x, embedding)
        if self.attention is None:
            return x
        return self.attention(x, None if self.text is None else next(keys), mask)


class EfficientUNet(nn.Module):
    """From z and the picture of the stage below, [B,n_in,H,W], to [B,n_out,H,W] [1] section B.1.

    Args:
        config: its sizes.
        n_in, n_out: channels.
        text_width: of the text that attention reads; None: it reads none.
    """

    def __init__(self, config: configs.EfficientUNet, n_in: int, n_out: int, text_width: int | None) -> None:
        super().__init__()
        self.config, self.text_width = config, text_width
        widths = (config.width, *config.widths)  # in front of each level and behind it
        self.input = Conv(n_in, config.width)
        self.shrink, self.down = nn.ModuleList(), nn.ModuleList()
        for i, width in enumerate(config.widths):
            self.shrink.append(Conv(widths[i], width, stride=2))
            self.down.append(Level(config, i, text_width))
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, width in reversed(list(enumerate(config.widths))):
            self.up.append(Level(config, i, text_width))
            self.grow.append(nn.Sequential(Conv(width, widths[i]), Up()))
        self.norm = GroupNorm(config.groups, config.width, config.activation)
        self.out = Conv(config.width, n_out, zero=True)

    def forward(self, x: Tensor, embedding: Tensor, keys: Iterator[Tensor], mask: Tensor | None) -> Tensor:
        """Return [B,n_out,H,W].

        Args:
            x: [B,n_in,H,W], sides multiples of `config.factor`.
            embedding: [B,E] of time, level and caption, past its activation.
            keys: what `TextKeys` of each attention makes of the text, in order.
            mask: [B,T], True where the text is read; None: everywhere.
        """
        x = self.input(x)
        skips = []
        for shrink, level in zip(self.shrink, self.down, strict=True):
            skips.append(x)
            x = level(shrink(x), embedding, keys, mask)
        for level, grow in zip(self.up, self.grow, strict=True):
            x = torch.add(grow(level(x, embedding, keys, mask)), skips.pop(), alpha=SKIP_SCALE)
        return self.out(self.norm(x))

"""The base model's U-Net.

Letters: B batch, C channels of z, H W its sides, E width of the embedding.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
[2] P. Dhariwal, A. Nichol: Diffusion models beat GANs on image synthesis. arXiv:2105.05233
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from zoo.nn.residual import Residual
from zoo_imagen import configs
from zoo_imagen.condition import TextKeys
from zoo_imagen.layers import Attention, Conv, Down, Up, resampling_block, residual_block
from zoo_imagen.norm import GroupNorm


class Layer(nn.Module):
    """A residual block, and attention where there is any.

    Args:
        block: the residual block.
        attention: None, or the attention behind it.
        text: what makes that attention's text keys; None where nothing is read.
        scale: factor of the block's sum.
    """

    def __init__(
        self, block: Residual, attention: Residual | None = None, text: TextKeys | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.block, self.attention, self.text, self.scale = block, attention, text, scale
        self.doubles = isinstance(block.skip, Up)

    def forward(self, x: Tensor, embedding: Tensor, keys: Iterator[Tensor], mask: Tensor | None) -> Tensor:
        """Return the next [B,C,h,w]; `keys` yields the text keys of each attention that reads some, in order."""
        x = self.block(x, embedding)
        if self.scale != 1.0:
            x = x * self.scale
        if self.attention is None:
            return x
        return self.attention(x, None if self.text is None else next(keys), mask)


class UNet(nn.Module):
    """From z and what is concatenated to it, [B,n_in,H,W], to [B,n_out,H,W] [2] [1] appendix F.

    Args:
        config: its sizes.
        n_in, n_out: channels.
        text_width: of the text that attention reads; None: it reads none.
    """

    def __init__(self, config: configs.UNet, n_in: int, n_out: int, text_width: int | None) -> None:
        super().__init__()
        self.config, self.text_width = config, text_width
        levels = len(config.widths)
        self.input = Conv(n_in, config.width)
        self.down = nn.ModuleList()
        width, skips = config.width, [config.width]
        for i, n in enumerate(config.widths):
            for _ in range(config.blocks):
                self.down.append(self._layer(width, n, 2**i in config.attention))
                width = n
                skips.append(n)
            if i < levels - 1:
                self.down.append(self._resampling(n, Down))
                skips.append(n)
        self.middle = nn.ModuleList((self._layer(width, width, True), self._layer(width, width, False)))
        self.up = nn.ModuleList()  # after the middle: `TextKeys` are found in the order of registration
        for i, n in reversed(list(enumerate(config.widths))):
            for _ in range(config.blocks + 1):
                self.up.append(self._layer(width + skips.pop(), n, 2**i in config.attention))
                width = n
            if i:
                self.up.append(self._resampling(n, Up))
        self.norm = GroupNorm(config.groups, width, config.activation)
        self.out = Conv(width, n_out, zero=True)

    def _layer(self, n_in: int, n_out: int, attends: bool) -> Layer:
        c = self.config
        block = residual_block(n_in, n_out, c.time_width, c.groups, c.activation)
        if not attends:
            return Layer(block, scale=c.sum_scale)
        attention = Residual(Attention(n_out, n_out, n_out // c.head_width, c.groups))
        text = None if self.text_width is None else TextKeys(self.text_width, n_out, c.text_norm)
        return Layer(block, attention, text, c.sum_scale)

    def _resampling(self, width: int, resample: type[nn.Module]) -> Layer:
        c = self.config
        return Layer(resampling_block(width, c.time_width, c.groups, c.activation, resample), scale=c.sum_scale)

    def forward(self, x: Tensor, embedding: Tensor, keys: Iterator[Tensor], mask: Tensor | None) -> Tensor:
        """Return [B,n_out,H,W].

        Args:
            x: [B,n_in,H,W], sides multiples of `config.factor`.
            embedding: [B,E] of time and condition, past its activation.
            keys: what `TextKeys` of each attention makes of the text, in order.
            mask: [B,T], True where the text is read; None: everywhere.
        """
        x = self.input(x)
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding, keys, mask)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding, keys, mask)
        for layer in self.up:
            if not layer.doubles:
                x = torch.cat((x, skips.pop()), dim=1)
            x = layer(x, embedding, keys, mask)
        return self.out(self.norm(x))

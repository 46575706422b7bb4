"""DiffuSSM's block, and the stack of blocks that DiT uses too.

Letters: B batch, M positions a place, L positions, J = L/M places, T text tokens, D width.

[1] J. Yan, J. Gu, A. Rush: Diffusion models without attention. arXiv:2311.18257
[2] F. Bao et al.: All are worth words: a ViT backbone for diffusion models. arXiv:2209.12152
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.residual import Residual
from zoo.nn.s4d import S4D
from zoo_diffussm import configs
from zoo_diffussm.layers import Xavier, Zero, modulated


class Stack(nn.Module):
    """Residual blocks one after the other, on the places of a picture with a caption's tokens in front.

    Args:
        blocks: each takes x [B,T+J,D], the condition [B,D] and which places are read [B,T+J] (None: all).
        skipping: None, or D: the second half of the blocks also reads what the first half made, last first [2].
    """

    def __init__(self, blocks: list[Residual], skipping: int | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        half = 0 if skipping is None else len(blocks) // 2
        self.merge = nn.ModuleList(Xavier(2 * (skipping or 0), skipping or 0) for _ in range(half))

    def forward(self, x: Tensor, told: Tensor, prefix: Tensor | None, mask: Tensor | None) -> Tensor:
        """Return [B,J,D].

        Args:
            x: [B,J,D].
            told: the condition [B,D], its activation passed.
            prefix: [B,T,D] or None.
            mask: [B,T], True where the prefix is read.
        """
        places = x.shape[1]
        read = None
        if prefix is not None:
            x = torch.cat((prefix.to(x.dtype), x), dim=1)
            read = None if mask is None else F.pad(mask, (0, places), value=True)
        made: list[Tensor] = []
        late = len(self.blocks) - len(self.merge)
        for i, block in enumerate(self.blocks):
            if i >= late:
                x = self.merge[i - late](torch.cat((x, made.pop()), dim=2))
            x = block(x, told, read)
            if i < len(self.merge):
                made.append(x)
        return x[:, -places:]


def ssm_blocks(config: configs.DiffuSsm) -> list[Residual]:
    """Return DiffuSSM's blocks."""
    return [Residual(SsmBlock(config)) for _ in range(config.depth)]


class SsmBlock(nn.Module):
    """The branch of a block [1] section 4: hourglass up, bidirectional SSM, hourglass down, gated fusion.

    With I the modulated norm of the input, s = GELU and k the position within a place:
        U_l = s(Wup_k s(W0 I_j)),  Y = SSM(U),  I'_j = concatenation of s(Wdown_k Y_l),  O = W3 (s(W2 I') * s(W1 I)).
    """

    def __init__(self, config: configs.DiffuSsm) -> None:
        super().__init__()
        d, m = config.width, config.shortening
        self.shortening = m
        self.modulation = Zero(d, 2 * d)
        self.shared = Xavier(d, d)
        self.up = Xavier(d, m * d)
        self.ssm = sequence_layer(config)
        self.down = nn.ModuleList(Xavier(2 * d, 2 * d // m) for _ in range(m))
        self.gate = Xavier(d, 2 * d)
        self.mix = Xavier(2 * d, 2 * d)
        self.out = Zero(2 * d, d)

    def forward(self, x: Tensor, told: Tensor, read: Tensor | None) -> Tensor:
        """Return [B,J,D] of [B,J,D]; read [B,J] is True where a place is read, None: everywhere."""
        i = modulated(x, *self.modulation(told).chunk(2, dim=1))
        u = F.gelu(self.up(F.gelu(self.shared(i))))
        if read is not None:  # the SSM alone carries anything from place to place
            u = u.masked_fill(~read[..., None], 0)
        y = self.ssm(u.unflatten(2, (self.shortening, -1)).flatten(1, 2))
        y = y.unflatten(1, (-1, self.shortening))  # [B,J,M,2D]
        short = torch.cat([F.gelu(down(y[:, :, k])) for k, down in enumerate(self.down)], dim=2)
        return self.out(F.gelu(self.mix(short)) * F.gelu(self.gate(i)))


def sequence_layer(config: configs.DiffuSsm) -> nn.Module:
    """Return what turns [B,L,D] into [B,L,2D]: an SSM in each direction, or two of them forward."""

    def layer(*, bidirectional: bool) -> S4D:
        return S4D(
            config.width, state=config.state, bidirectional=bidirectional, init=config.init, rule=config.discretisation
        )

    if config.directions == "both":
        return layer(bidirectional=True)
    return Forward(layer(bidirectional=False), layer(bidirectional=False))


class Forward(nn.Module):
    """Two layers on the same sequence, their outputs side by side."""

    def __init__(self, first: S4D, second: S4D) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, u: Tensor) -> Tensor:
        """Return [B,L,2D] of [B,L,D]."""
        return torch.cat((self.first(u), self.second(u)), dim=2)

"""DiT's block.

Letters: B batch, J places, D width, S heads.

[1] W. Peebles, S. Xie: Scalable diffusion models with transformers. arXiv:2212.09748; github.com/facebookresearch/DiT
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.residual import Residual
from zoo_diffussm import configs
from zoo_diffussm.layers import Xavier, Zero, modulated


def dit_blocks(config: configs.DiT) -> list[Residual]:
    """Return DiT's blocks, each two residual sums: attention and MLP."""
    blocks: list[Residual] = []
    for _ in range(config.depth):
        blocks += Residual(Attention(config)), Residual(Mlp(config))
    return blocks


class Attention(nn.Module):
    """The branch of an attention, gated by the condition [1] section 3.2 (adaLN-Zero)."""

    def __init__(self, config: configs.DiT) -> None:
        super().__init__()
        d = config.width
        self.heads = config.heads
        self.modulation = Zero(d, 3 * d)
        self.qkv = Xavier(d, 3 * d)
        self.out = Xavier(d, d)

    def forward(self, x: Tensor, told: Tensor, read: Tensor | None) -> Tensor:
        """Return [B,J,D] of [B,J,D]; read [B,J] is True where a place is read, None: everywhere."""
        shift, scale, gate = self.modulation(told).chunk(3, dim=1)
        qkv = self.qkv(modulated(x, shift, scale)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        seen = None if read is None else read[:, None, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return gate[:, None] * self.out(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The branch of a two-layer network, gated by the condition [1] section 3.2 (adaLN-Zero)."""

    def __init__(self, config: configs.DiT) -> None:
        super().__init__()
        d = config.width
        self.modulation = Zero(d, 3 * d)
        self.up = Xavier(d, config.hidden * d)
        self.down = Xavier(config.hidden * d, d)

    def forward(self, x: Tensor, told: Tensor, read: Tensor | None) -> Tensor:
        """Return [B,J,D] of [B,J,D]."""
        shift, scale, gate = self.modulation(told).chunk(3, dim=1)
        return gate[:, None] * self.down(F.gelu(self.up(modulated(x, shift, scale)), approximate="tanh"))

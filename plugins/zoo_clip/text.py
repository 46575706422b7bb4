"""CLIP's text tower as a text encoder: the states of its last layer but one.

[1] A. Radford et al.: Learning Transferable Visual Models From Natural Language Supervision. arXiv:2103.00020
[2] C. Saharia et al.: Photorealistic Text-to-Image Diffusion Models. arXiv:2205.11487

Shapes: B batch, T text tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, PartMismatch
from zoo_clip.text_configs import ClipText as Config
from zoo_clip.towers import Embedding, tower_blocks


class ClipText(nn.Module):
    """Captions' ids to embeddings.

    The last layer, the norm after it and the projection make CLIP's one feature of a caption, and are not here.

    Args:
        config: bound; `text_vocab` and `text_length` are set.

    Raises:
        ConfigError: one of them is not.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        if config.text_vocab is None or config.text_length is None:
            raise ConfigError("text_vocab, text_length: CLIP's text tower needs its tokenizer's sizes")
        self.config = config
        self.width = config.width
        self.tokens = Embedding(config.text_vocab, config.width, config.token_std)
        position = torch.empty(config.text_length, config.width).normal_(std=config.position_std)
        self.position = nn.Parameter(position)
        self.blocks = tower_blocks(config.width, config.heads, config.layers - 1, config.activation, causal=True)

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Return [B,T,D] of ids [B,T], zero where the mask [B,T] is False; T is at most `text_length`.

        Padding comes after the caption, where no causal column looks. The gradient reaches every parameter.

        Raises:
            PartMismatch: captions are longer than there are positions.
        """
        if ids.shape[1] > len(self.position):
            raise PartMismatch(f"captions of {ids.shape[1]} tokens, and CLIP's text tower has {len(self.position)}")
        used = mask.any(0).nonzero()
        length = int(used[-1]) + 1 if len(used) else 1
        x = self.blocks(self.tokens(ids[:, :length]) + self.position[:length])
        return F.pad(x * mask[:, :length, None], (0, 0, 0, ids.shape[1] - length))

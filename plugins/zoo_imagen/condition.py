"""Text as the keys of Imagen's attentions.

Letters: B batch, T text tokens, D width of the text, I inner width of an attention.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
[2] github.com/deep-floyd/IF, deepfloyd_if/model/nn.py
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn.precision import full_precision, wide
from zoo_imagen.configs import TEXT_GROUPS


class TextKeys(nn.Module):
    """Text [B,T,D] to one attention's keys and values [B,T,2I], after a norm of its own [1] section 2.4.

    Args:
        width: D.
        inner: I.
        norm: "layer" [1], or "group" over the tokens of a caption, padding included [2].
    """

    def __init__(self, width: int, inner: int, norm: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm == "layer" else nn.GroupNorm(TEXT_GROUPS, width, eps=1e-5)
        self.keys = nn.Linear(width, 2 * inner)

    def forward(self, text: Tensor) -> Tensor:
        """Return [B,T,2I]."""
        if isinstance(self.norm, nn.LayerNorm):
            return self.keys(self.norm(text))
        gain, bias = wide(self.norm.weight), wide(self.norm.bias)
        with full_precision(text):
            normed = F.group_norm(wide(text).transpose(1, 2), self.norm.num_groups, gain, bias, self.norm.eps)
        return self.keys(normed.transpose(1, 2).to(text.dtype))

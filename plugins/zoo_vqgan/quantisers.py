"""VQGAN's two quantisers. Both turn z [B,D,h,w] into codes [B,h,w] and their vectors, in fp32 also under autocast.

Letters: B batch, D width of a code, h w code grid, K codes.

[1] P. Esser, R. Rombach, B. Ommer: Taming transformers for high-resolution image synthesis. arXiv:2012.09841.
[2] The authors' code, github.com/CompVis/taming-transformers, `taming/modules/vqvae/quantize.py`.
[3] E. Jang, S. Gu, B. Poole: Categorical reparameterization with Gumbel-softmax. arXiv:1611.01144.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.nn import across
from zoo.nn.precision import full_precision, wide
from zoo.nn.quantise import GradientCodes, Quantised, VectorQuantiser, code_curves
from zoo.rng import Rng
from zoo_vqgan import configs


class Codes(GradientCodes):
    """K vectors learned by gradient, born in U(-1/K, 1/K). [2]"""

    def __init__(self, count: int, width: int) -> None:
        super().__init__(count, width)
        nn.init.uniform_(self.weight, -1 / count, 1 / count)


class Nearest(VectorQuantiser):
    """The nearest of K vectors. [1] eq. (2)"""

    def __init__(self, config: configs.Vqgan) -> None:
        own = config.nearest
        super().__init__(
            Codes(config.vocab_size, config.width),
            beta=own.commitment_weight / own.codebook_weight,
            revive_below=own.revive_below,
        )
        self.scale = own.codebook_weight

    def train_codes(self, z: Tensor, *, step: int, rng: Rng) -> Quantised:
        """Quantise z [B,D,h,w], with [1] eq. (4) as the loss: both terms weighted, means over positions and D."""
        q = self(z, rng)
        return attrs.evolve(q, loss=self.scale * q.loss)


class Gumbel(nn.Module):
    """One of K vectors, drawn from softmax(logits): hard forward, soft backward. [3]

    Drawing is for training; `encode` takes the likeliest code.
    """

    whole_batch = False

    def __init__(self, config: configs.Vqgan) -> None:
        super().__init__()
        self.config = config.gumbel
        self.vocab_size = config.vocab_size
        self.proj = nn.Linear(config.width, config.vocab_size)
        self.embed = nn.Embedding(config.vocab_size, config.width)

    def logits(self, z: Tensor) -> Tensor:
        """Return the posterior's logits [B,h,w,K] of z [B,D,h,w]."""
        with full_precision(z):
            return F.linear(wide(z).movedim(1, -1), wide(self.proj.weight), wide(self.proj.bias))

    def train_codes(self, z: Tensor, *, step: int, rng: Rng) -> Quantised:
        """Draw a code in each place of z [B,D,h,w]; the loss is the weighted KL to the uniform prior."""
        temperature = self.config.temperature_at(step)
        logits_BhwK = self.logits(z)
        gumbel_BhwK = rng.gumbel(*logits_BhwK.shape[1:], device=z.device).to(logits_BhwK)
        with full_precision(z):
            soft_BhwK = ((logits_BhwK + gumbel_BhwK) / temperature).softmax(-1)
            codes_Bhw = soft_BhwK.argmax(-1)
            book_KD = wide(self.embed.weight)
            # The value is the drawn vector's, bit for bit, and so is its gradient to the book; the logits are moved
            # as if the soft mixture had been decoded.
            mixed_BhwD = soft_BhwK @ book_KD.detach()
            e_BhwD = F.embedding(codes_Bhw, book_KD) + (mixed_BhwD - mixed_BhwD.detach())
            kl_B = kl_to_uniform(logits_BhwK).flatten(1).mean(1)
        used_K = torch.bincount(codes_Bhw.flatten(), minlength=self.vocab_size).to(kl_B)
        if self.training:
            used_K = across.sum(used_K)
        curves = code_curves(used_K)
        curves["kl"] = kl_B.detach().mean()
        curves["temperature"] = kl_B.new_tensor(temperature)
        return Quantised(e_BhwD.movedim(-1, 1), codes_Bhw, self.config.kl_weight * kl_B, curves)

    def encode(self, z: Tensor) -> Tensor:
        """Return the likeliest codes [B,h,w] of z [B,D,h,w]."""
        return self.logits(z).argmax(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors [B,D,h,w] of codes [B,h,w]."""
        return F.embedding(codes, wide(self.embed.weight)).movedim(-1, 1)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Return KL(softmax(logits) || uniform) over the last axis, in nats: [...,K] -> [...], in [0, ln K]."""
    logp = logits.log_softmax(-1)
    return (logp.exp() * logp).sum(-1) + math.log(logits.shape[-1])


def quantiser(config: configs.Vqgan) -> Nearest | Gumbel:
    """Return the quantiser a config asks for."""
    return Gumbel(config) if config.quantiser == "gumbel" else Nearest(config)

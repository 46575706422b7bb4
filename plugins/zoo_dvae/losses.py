"""The terms of the dVAE's objective, and its pixel map.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092, sections 2.1, A.2, A.3
"""

import math

import torch
from torch import Tensor


def map_pixels(x: Tensor, epsilon: float) -> Tensor:
    """Squeeze pixels from [0, 1] to [epsilon, 1 - epsilon] ([1] A.3)."""
    return x * (1 - 2 * epsilon) + epsilon


def unmap_pixels(x: Tensor, epsilon: float) -> Tensor:
    """Undo `map_pixels`; what falls outside is clamped to [0, 1]."""
    return ((x - epsilon) / (1 - 2 * epsilon)).clamp(0, 1)


def logit_laplace_nll(x: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """Return -ln f(x | mu, b) elementwise, x in (0, 1), in nats ([1] eq. (2)).

    f(x | mu, b) = exp(-|logit x - mu| / b) / (2 b x (1 - x)) integrates to 1 on (0, 1).
    """
    return (torch.logit(x) - mu).abs() * torch.exp(-log_b) + log_b + torch.log(2 * x * (1 - x))


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Return KL(softmax(logits) || uniform) over the last axis, in nats: [..., K] -> [...], in [0, ln K].

    The relaxed posterior has no tractable KL; the authors use the categorical one, from the raw logits.
    """
    logp = logits.log_softmax(-1)
    return (logp.exp() * logp).sum(-1) + math.log(logits.shape[-1])


def relax(logits: Tensor, gumbel: Tensor, temperature: float) -> Tensor:
    """Return soft one-hot samples over the last axis, [..., K] -> [..., K] (Gumbel-softmax, [1] section 2.1)."""
    return ((logits + gumbel) / temperature).softmax(-1)

"""What a decoder's output says of 8-bit pixels: p(x|z), discrete, so that bits per dimension are defined.

Images are [B,3,H,W] in [0, 1]; the network works in [-0.5, 0.5]. A pixel's 8-bit value is round(255 x).

[1] A. van den Oord, O. Vinyals, K. Kavukcuoglu: Neural discrete representation learning. arXiv:1711.00937.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from zoo.nn.quantise import wide
from zoo_vqvae.configs import Pixels


class Gaussian:
    """A normal distribution of fixed deviation around the output, cut into 256 bins.

    Args:
        data_variance: divides the mean squared error in `loss`.
        deviation: standard deviation in `nll`, pixels in [0, 1].
    """

    channels = 3

    def __init__(self, data_variance: float, deviation: float) -> None:
        self.data_variance, self.deviation = data_variance, deviation

    def loss(self, out: Tensor, images: Tensor) -> Tensor:
        """Return [B]: mean squared error over the data's variance, as the authors train."""
        return self.error(out, images) / self.data_variance

    def error(self, out: Tensor, images: Tensor) -> Tensor:
        """Return [B]: mean squared error, pixels in [0, 1]."""
        return (wide(out) + 0.5 - images).square().flatten(1).mean(1)

    def nll(self, out: Tensor, images: Tensor) -> Tensor:
        """Return [B]: -log p(x|z) in nats, summed over the picture.

        The bins of 0 and 255 reach to infinity, so that the probabilities of the 256 values sum to one.
        """
        value = (images * 255).round()
        mean = (wide(out) + 0.5) * 255
        low = ((value - 0.5 - mean) / (255 * self.deviation)).masked_fill(value <= 0, -math.inf)
        high = ((value + 0.5 - mean) / (255 * self.deviation)).masked_fill(value >= 255, math.inf)
        # In the upper tail both cumulatives round to one: mirror it into the lower one, where they do not.
        mirror = low > -high
        low, high = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
        above, below = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        return -(above + torch.log1p(-(below - above).exp())).flatten(1).sum(1)

    def decode(self, out: Tensor) -> Tensor:
        """Return the mean, in [0, 1]."""
        return (wide(out) + 0.5).clamp(0, 1)


class Softmax:
    """256 values for each pixel and channel. The authors' choice on CIFAR-10; the paper does not say so."""

    channels = 3 * 256

    def _logits(self, out: Tensor) -> Tensor:
        return wide(out).unflatten(1, (256, 3))

    def loss(self, out: Tensor, images: Tensor) -> Tensor:
        """Return [B]: -log p(x|z) in nats per dimension."""
        return self.nll(out, images) / images[0].numel()

    def error(self, out: Tensor, images: Tensor) -> Tensor:
        """Return [B]: mean squared error of the most probable values, pixels in [0, 1]."""
        return (self.decode(out) - images).square().flatten(1).mean(1)

    def nll(self, out: Tensor, images: Tensor) -> Tensor:
        """Return [B]: -log p(x|z) in nats, summed over the picture."""
        return F.cross_entropy(self._logits(out), (images * 255).round().long(), reduction="none").flatten(1).sum(1)

    def decode(self, out: Tensor) -> Tensor:
        """Return the most probable value of each, in [0, 1]."""
        return self._logits(out).argmax(1) / 255.0


Likelihood = Gaussian | Softmax


def likelihood(config: Pixels) -> Likelihood:
    """Return the likelihood a config names."""
    return Softmax() if config.likelihood == "softmax" else Gaussian(config.data_variance, config.deviation)


def bits(nats: Tensor, images: Tensor) -> Tensor:
    """Return nats of a whole picture as bits per dimension: nats / (3 H W ln 2)."""
    return nats / (images[0].numel() * math.log(2))

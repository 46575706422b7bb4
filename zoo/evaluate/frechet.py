"""The Fréchet distance between two sets of pictures, each taken for a Gaussian over some feature of its pictures.

With Inception's features this is the FID [2]; with any other it is not, and is never called so here. It depends on the
feature's scale and on the number of pictures: of two sets from one and the same source it is above zero, by more the
fewer they are. So it says something beside another of the same feature and numbers only.

[1] D. Dowson, B. Landau: The Fréchet distance between multivariate normal distributions. J. Multivariate Analysis 12,
    1982.
[2] M. Heusel et al.: GANs trained by a two time-scale update rule converge to a local Nash equilibrium.
    arXiv:1706.08500

Letters: n pictures, D features.
"""

from __future__ import annotations

import torch
from torch import Tensor


def frechet(ours: Tensor, theirs: Tensor) -> float:
    """Return the squared distance between the Gaussians of two sets of features [n,D] and [m,D], n and m at least 2.

    Raises:
        ValueError: a set has fewer than two rows.
    """
    return gaussian_distance(*moments(ours), *moments(theirs))


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean [D] and covariance [D,D] (divided by n - 1) of features [n,D], in float64."""
    if len(features) < 2:
        raise ValueError(f"a covariance needs two pictures, not {len(features)}")
    x = features.double()
    mean = x.mean(0)
    centred = x - mean
    return mean, centred.T @ centred / (len(x) - 1)


def gaussian_distance(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> float:
    """Return |m1 - m2|² + tr(C1 + C2 - 2 (C1^½ C2 C1^½)^½). [1]

    The last trace is the sum of the singular values of C2^½ C1^½. Taken so, nothing is squared that has its root drawn
    afterwards: a covariance without full rank (fewer pictures than features) costs no digits.
    """
    shared = torch.linalg.svdvals(_root(other_cov) @ _root(cov)).sum()
    distance = (mean - other_mean).square().sum() + cov.trace() + other_cov.trace() - 2 * shared
    return max(0.0, float(distance))  # of two equal sets, rounding may leave a little less


def _root(cov: Tensor) -> Tensor:
    """Return the symmetric root of a covariance [D,D] in float64."""
    values, vectors = torch.linalg.eigh(cov.double())
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T

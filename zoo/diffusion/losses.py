"""The losses of a denoiser: a weighted mean squared error, and the variational term that teaches a variance.

Letters: B batch.

[1] J. Ho, A. Jain, P. Abbeel: Denoising diffusion probabilistic models. arXiv:2006.11239
[2] T. Hang et al.: Efficient diffusion training via min-SNR weighting strategy. arXiv:2303.09556
[3] A. Nichol, P. Dhariwal: Improved denoising diffusion probabilistic models. arXiv:2102.09672
[4] github.com/deep-floyd/IF, deepfloyd_if/model/gaussian_diffusion.py
[5] D. Kingma, R. Gao: Understanding diffusion objectives as the ELBO with simple data augmentation. arXiv:2303.00848
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import attrs
import torch
from torch import Tensor
from torch.nn.functional import softplus

from zoo.diffusion import laws, variational
from zoo.diffusion.config import Schedule
from zoo.diffusion.process import noised, target, to_x0
from zoo.errors import ConfigError, suggest
from zoo.interfaces import Cond, Denoiser
from zoo.nn.precision import full_precision, wide
from zoo.rng import Rng

Weighting = Literal["eps", "v", "x0", "min-snr"]
PIECES = 1000
"""Steps into which the variational term divides a continuous schedule."""


@attrs.frozen(eq=False)
class Levels:
    """The noise levels of a batch, fp64, and for the variational term those of a step."""

    logsnr: Tensor
    """[B]."""
    lowest: Tensor
    """[B] bool, True where the step below is the clean picture."""
    upper: Tensor
    """[B] log-SNR of the upper level of the step whose posterior's variance is the least that can be predicted: this
    one; of the lowest, whose own posterior has none, the one above it [3] [4]."""
    lower: Tensor
    """[B] log-SNR of that step's lower level."""


def levels(schedule: Schedule, rng: Rng, device: torch.device | str | None = None) -> Levels:
    """Draw a level for each row: a time in (0, 1) of a continuous schedule, one of its steps of a discrete one."""
    if schedule.steps is not None:
        k = rng.integers(schedule.steps, device=device)
        upper = k.clamp(min=1)
        return Levels(
            laws.at_step(schedule, k), k == 0, laws.at_step(schedule, upper), laws.at_step(schedule, upper - 1)
        )
    u, step = rng.uniform(device=device).double(), 1 / PIECES
    lowest = u <= step
    upper = torch.where(lowest, 2 * step, u)
    return Levels(schedule.logsnr(u), lowest, schedule.logsnr(upper), schedule.logsnr(upper - step))


def weight(weighting: Weighting, prediction: str, logsnr: Tensor, snr_max: float = 5.0) -> Tensor:
    """Return what the squared error of a prediction is multiplied by, [B] in logsnr's type. [5] table 1

    Every weighting is one of the error of x0: "eps" by SNR [1] eq. (14), "v" by SNR + 1, "x0" by one and "min-snr" by
    the lesser of SNR and `snr_max` [2] eq. (9). The squared errors of eps, v and x0 themselves are as the first three.

    Raises:
        ConfigError: no such weighting.
    """
    if weighting not in get_args(Weighting):
        known = get_args(Weighting)
        raise ConfigError(f"weighting: must be one of {', '.join(known)}, not '{weighting}'{suggest(weighting, known)}")
    logs = {"eps": logsnr, "v": softplus(logsnr), "x0": torch.zeros_like(logsnr)}
    wanted = logsnr.clamp(max=math.log(snr_max)) if weighting == "min-snr" else logs[weighting]
    return (wanted - logs[prediction]).exp()


def denoising(
    denoiser: Denoiser,
    x: Tensor,
    cond: Cond,
    *,
    rng: Rng,
    weighting: Weighting = "eps",
    snr_max: float = 5.0,
    vlb: float = 1.0,
) -> dict[str, Tensor]:
    """Return "loss", a mean over samples, of predicting clean x [B,C,h,w] from noise at a random level of the schedule.

    Levels and noise are of `rng` (B rows). Beside it, without gradient: "mse", of the network's own parameterisation
    and unweighted, and "vlb", one step's bits per dimension, where the denoiser predicts a variance.

    Args:
        denoiser: asked once, with the condition as it is: who drops conditions has dropped them.
        x: in [-1, 1] where the denoiser is bounded.
        cond: B rows.
        rng: B rows.
        weighting: see `weight`.
        snr_max: of "min-snr" only, gamma of [2].
        vlb: weight of the variational bound in thousandths, for a denoiser that predicts a variance; the mean takes no
            part in it. 1 is the 0.001 of [3] section 3.4. The bound is a sum over N steps, of which one is drawn: its
            bits per dimension are weighted by N / 1000, as in [4] ("rescaled MSE"). A law is divided into `PIECES`.

    Raises:
        ConfigError: no such weighting or parameterisation.
    """
    at = levels(denoiser.schedule, rng.fork("time"), x.device)
    eps = rng.fork("noise").normal(*x.shape[1:], device=x.device)
    with full_precision(x):
        z = noised(x, eps, at.logsnr)
        wanted = target(denoiser.prediction, x, eps, at.logsnr)
        weights = weight(weighting, denoiser.prediction, at.logsnr, snr_max)
    found = denoiser.predict(z, at.logsnr.to(z), cond)
    with full_precision(x):
        mse = (wide(found.mean) - wanted).square().flatten(1).mean(1)
        terms: dict[str, Any] = {"loss": (weights.to(mse) * mse).mean(), "mse": mse.detach().mean()}
        if found.variance is not None:
            estimate = to_x0(denoiser.prediction, found.mean, z, at.logsnr).detach()
            bits = variational.bits(wide(x), estimate, wide(found.variance), at).mean()
            steps = denoiser.schedule.steps or PIECES
            terms["loss"], terms["vlb"] = terms["loss"] + vlb * steps / 1000 * bits, bits.detach()
    return terms

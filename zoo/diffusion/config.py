"""Noise schedules, and how a denoiser is sampled. Imports no torch.

States are variance preserving: z = alpha x + sigma eps with alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr).
Time t runs from 0, clean, to 1, noise.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding. arXiv:2205.11487
[2] A. Nichol, P. Dhariwal: Improved denoising diffusion probabilistic models. arXiv:2102.09672
[3] J. Ho, A. Jain, P. Abbeel: Denoising diffusion probabilistic models. arXiv:2006.11239
[4] E. Hoogeboom, J. Heek, T. Salimans: simple diffusion. arXiv:2301.11093
[5] T. Karras et al.: Elucidating the design space of diffusion-based generative models. arXiv:2206.00364
[6] J. Song, C. Meng, S. Ermon: Denoising diffusion implicit models. arXiv:2010.02502
[7] C. Lu et al.: DPM-Solver++. arXiv:2211.01095
[8] github.com/deep-floyd/IF
[9] github.com/lucidrains/imagen-pytorch, imagen_pytorch/imagen_pytorch.py
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import attrs
from attrs import validators as v

from zoo.diffusion import respacing, tables

if TYPE_CHECKING:
    from torch import Tensor

FEWEST = {"ddpm": 2, "ddim": 1, "dpm++": 3, "heun": 2}
"""Sampler -> the fewest steps with which it differs from DDIM."""


@attrs.frozen(kw_only=True)
class Schedule:
    """How much noise there is at time t in [0, 1]: a continuous law, or a table of discrete steps."""

    kind: Literal["cosine", "linear", "edm", "cosine-1000", "cosine-4000", "linear-1000"] = "cosine"
    """Continuous: "cosine", alpha^2 = cos^2((t + 0.008) / 1.008 pi/2) [1] [2]; "linear", log-SNR -log(expm1(1e-4 +
    10 t^2)) [9], nearly that of a thousand betas from 1e-4 to 0.02, which is all that [1] says; "edm", sigma/alpha from
    0.002 to 80 with rho = 7 [5], for sampling. With a number, that many discrete steps: "cosine" with betas capped at
    0.999 [2] [8], "linear" with betas from 1e-4 to 0.02 [3]."""
    shift: float = 0.0
    """Added to the log-SNR: 2 log(reference / size) makes pictures of side `size` as noisy as the law makes those of
    side `reference` [4] eq. (4)."""
    logsnr_min: float = -20.0
    """Least log-SNR of a continuous law. A prediction of noise says nothing of the picture far below -10: without
    thresholding, as of latents, take about -10."""
    logsnr_max: float = attrs.field(default=20.0)
    """Greatest log-SNR of a continuous law."""

    @logsnr_max.validator
    def _in_order(self, attribute: Any, value: float) -> None:
        if value <= self.logsnr_min:
            raise ValueError(f"'logsnr_max' must exceed logsnr_min ({self.logsnr_min:g}), got {value:g}")

    @property
    def discrete(self) -> bool:
        """True of a table of steps."""
        return self.kind in tables.DISCRETE

    @property
    def steps(self) -> int | None:
        """Steps of the table, or None of a continuous law."""
        return tables.DISCRETE[self.kind][0] if self.discrete else None

    def logsnr(self, t: Tensor) -> Tensor:
        """Return the log-SNR at t, of t's shape and type; computed in fp64.

        Step k of N discrete ones is at t = k / N; between steps, and only there, it is interpolated.
        """
        from zoo.diffusion import laws

        return laws.logsnr(self, t)

    def time(self, logsnr: Tensor) -> Tensor:
        """Return t in [0, 1] at which the log-SNR is this, of its shape and type; the inverse of `logsnr`.

        The log-SNR of a discrete step gives k / N exactly, in fp32 or fp64.
        """
        from zoo.diffusion import laws

        return laws.time(self, logsnr)


@attrs.frozen(kw_only=True)
class Diffusing:
    """How one denoiser is sampled unless the caller says otherwise."""

    sampler: Literal["ddpm", "ddim", "dpm++", "heun"] = "ddpm"
    """"ddpm", ancestral [3] [1]; "ddim" [6]; "dpm++", DPM-Solver++(2M) [7]; "heun", EDM's without churn, two
    evaluations a step but the last [5]: best with schedule.kind = "edm"."""
    steps: int = attrs.field(default=250, validator=v.ge(1))
    """Noise levels visited. Not read where `spacing` is set."""
    guidance: float = attrs.field(default=1.0, validator=v.ge(0))
    """Classifier-free guidance w: w conditional + (1 - w) null; 1 is the conditional prediction [1] eq. (2)."""
    threshold: Literal["off", "static", "dynamic"] = "dynamic"
    """What becomes of estimates of the picture outside [-1, 1]: nothing, clipping, or clipping to a percentile and
    rescaling [1] section 2.3. Read only where the latent is bounded."""
    percentile: float = attrs.field(default=0.995, validator=v.and_(v.gt(0), v.le(1)))
    """Of an estimate's absolute values, in (0, 1] [1]; 0.95 in [8]. Read only with threshold = "dynamic"."""
    cap: float | None = attrs.field(default=None, validator=v.optional(v.ge(1)))
    """Upper bound of the dynamic threshold [8]: 1.5 for its base, 1 (which is clipping) above; None: none, as [1]."""
    gamma: float = attrs.field(default=0.0, validator=v.and_(v.ge(0), v.le(1)))
    """"ddpm" only: from the posterior's log-variance (0) to the forward step's (1) [1] appendix A. Not read of a
    denoiser that predicts its variance."""
    eta: float = attrs.field(default=0.0, validator=v.and_(v.ge(0), v.le(1)))
    """"ddim" only: share of the posterior's noise, 0 deterministic, 1 ancestral [6] eq. (16)."""
    schedule: Schedule | None = None
    """Noise levels while sampling; None: the denoiser's own."""
    spacing: str | None = attrs.field(default=None)
    """Which discrete steps are visited: so many of each of equal sections, as "10,10,3,2,2", or a name such as "fast27"
    [8]; None: `steps` of them evenly. Only with a discrete schedule."""
    level: float = attrs.field(default=0.2, validator=v.and_(v.ge(0), v.le(1)))
    """Time to which the picture of the stage below is noised; 0.1 to 0.3 look best [1] section 2.4. Read only by stages
    that have one."""

    @spacing.validator
    def _can_be_spaced(self, attribute: Any, value: str | None) -> None:
        if value is not None:
            respacing.counts(value)
        if self.levels < FEWEST[self.sampler]:
            what = f"'steps' is {self.steps}" if value is None else f"'spacing' has {self.levels} steps"
            raise ValueError(f"{what}, of which sampler = '{self.sampler}' needs {FEWEST[self.sampler]} or more")

    @property
    def levels(self) -> int:
        """Noise levels visited: `steps`, or the sum of the spacing's sections."""
        return self.steps if self.spacing is None else sum(respacing.counts(self.spacing))

    @property
    def evaluations(self) -> int:
        """Evaluations of the network a picture; guidance makes two of each, in one batch."""
        return 2 * self.levels - 1 if self.sampler == "heun" else self.levels

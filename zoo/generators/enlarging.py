"""The walk of a prompt through the stages of a cascade: each draws, and hands its picture to the next. [1]

Letters: B rows, C channels, h w latent grid, S side of a stage's pictures.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding.
    arXiv:2205.11487
[2] J. Ho et al.: Cascaded diffusion models for high fidelity image generation. arXiv:2106.15282
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from zoo.config import Overrides, fields, no_such_field, parse_overrides, value
from zoo.diffusion.config import Diffusing
from zoo.diffusion.process import noised
from zoo.diffusion.sampling import draw
from zoo.errors import ConfigError
from zoo.generators.candidates import Heard
from zoo.generators.given import Given
from zoo.interfaces import Cond
from zoo.nn.resize import larger
from zoo.rng import Rng


def draw_stages(
    system: Any, cond: Cond, rng: Rng, how: Mapping[str, Diffusing], given: Given | None, heard: Heard,
    roles: Sequence[str],
) -> dict[str, Tensor]:  # fmt: skip
    """Return what each stage draws, in its latent: role -> z [B,C,h,w].

    Args:
        system: a `CascadeGenerator`.
        cond: of B rows.
        rng: of B rows; every stage draws from a source of its own.
        how: how each stage is sampled.
        given: pictures of B rows to begin from, or None.
        heard: told of the steps done, of all rows.
        roles: the stages to draw, in order.
    """
    found: dict[str, Tensor] = {}
    below = None if given is None else given.low
    for role in roles:
        denoiser = system.parts[role] if system.bring is None else system.bring(role)
        side, settings, own = system.places[role].image_size, how[role], rng.fork(role)
        asked = cond
        if below is not None:
            level = torch.full((len(rng),), settings.level, device=below.device)
            asked = with_low(system.latent, denoiser.schedule, below, side, level, cond, own)
        start, known = (None, None) if given is None else given.at(side, system.latent)
        shape = system.latent.channels, *system.latent.size(side, side)
        found[role] = draw(
            denoiser, asked, shape, settings, own, start=start, known=known, progress=lambda n: heard(n * len(rng))
        )
        below = system.latent.decode(found[role])
        del denoiser  # or its weights would be there while the next one's are read
    return found


def with_low(
    latent: Any, schedule: Any, below: Tensor, side: int, level: Tensor, cond: Cond, rng: Rng
) -> Cond:  # fmt: skip
    """Return the condition with images [B,3,S',S'] of the stage below, enlarged to `side` and noised.

    Noise conditioning augmentation: the forward process of the denoiser's own schedule [1] appendix A, [2].

    Args:
        level: [B] in [0, 1]: 0 leaves the picture as it is, up to the schedule's start; 1 leaves nothing of it.
    """
    clean = latent.encode(larger(below, side))
    logsnr = schedule.logsnr(level)
    noise = rng.fork("low").normal(*clean.shape[1:], device=clean.device).to(clean)
    return attrs.evolve(cond, low=noised(clean, noise, logsnr), low_level=logsnr)


def cropped(z: Tensor, cond: Cond, crop: int | None, rng: Rng) -> tuple[Tensor, Cond]:
    """Return z [B,C,h,w] and the picture below it, cut to the same square of `crop` cells at a random place of a row.

    So a stage learns on pieces what it does to whole pictures [1] section 2.4.
    """
    height, width = z.shape[-2:]
    if crop is None or (crop >= height and crop >= width):
        return z, cond
    source = rng.fork("crop")
    tops = source.integers(height - crop + 1).tolist()
    lefts = source.integers(width - crop + 1).tolist()

    def cut(x: Tensor) -> Tensor:
        rows = zip(x, tops, lefts, strict=True)
        return torch.stack([row[:, top : top + crop, left : left + crop] for row, top, left in rows])

    return cut(z), cond if cond.low is None else attrs.evolve(cond, low=cut(cond.low))


def changed(own: Mapping[str, Diffusing], wanted: Overrides) -> dict[str, Diffusing]:
    """Return how each stage is sampled: its own settings with changes.

    Args:
        own: role -> settings.
        wanted: "steps=20" changes every stage, "base.steps=20" one; strings or a mapping.

    Raises:
        ConfigError: there is no such stage or setting, or the value is out of range.
    """
    known, changes = fields(Diffusing), {role: dict[str, Any]() for role in own}
    for path, new in sorted(parse_overrides(wanted).items(), key=lambda item: len(item[0])):  # of one, after of all
        said = ".".join(path)
        if len(path) > 1 and path[0] not in own:
            raise ConfigError(no_such_field(said, path[0], list(own)))
        role, name = path if len(path) == 2 else (None, path[-1])
        if len(path) > 2 or name not in known:
            raise ConfigError(no_such_field(said, name, known))
        for each in own if role is None else [role]:
            changes[each][name] = value(new, known[name], said)
    found = {}
    for role, settings in own.items():
        try:
            found[role] = attrs.evolve(settings, **changes[role])
        except (TypeError, ValueError) as cause:
            raise ConfigError(f"{role}: {cause.args[0] if cause.args else cause}") from None
    return found

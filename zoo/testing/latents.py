"""Checks of latents: sizes as promised, rows apart, pictures in [0, 1]."""

from __future__ import annotations

import torch

from zoo.rng import Rng
from zoo.testing.kit import ROWS, Case, close, global_random_state_kept, need


def latents_have_their_shape(case: Case) -> None:
    """encode returns finite [B,C,h,w] as size() and facts() say; within [-1, 1] if bounded; the mean without rng."""
    part, images, size = case.part, case.images(), case.image_size
    facts = case.config.facts(size)
    built = (part.channels, tuple(part.size(size, size)), part.bounded)
    need((facts.channels, facts.size, facts.bounded) == built, f"facts say {facts}, the latent is {built}")
    with torch.inference_mode(), global_random_state_kept("encode"):
        z = part.encode(images)
        need(torch.equal(z, part.encode(images)), "without rng one picture has two latents")
    need(z.shape == (ROWS, part.channels, *part.size(size, size)), f"latents have shape {list(z.shape)}")
    need(z.isfinite().all(), "latents are not finite")
    need(not part.bounded or z.abs().max() <= 1 + 1e-6, "a bounded latent leaves [-1, 1]")


def latents_ignore_neighbours(case: Case) -> None:
    """A picture's latent, with rng or without, does not depend on the batch around it."""
    part, images = case.part, case.images()
    with torch.inference_mode():
        close(part.encode(images)[1:2], part.encode(images[1:2]), "a latent depends on the pictures beside it")
        drawn = part.encode(images, Rng(3, range(ROWS)))
        close(drawn[1:2], part.encode(images[1:2], Rng(3, [1])), "a drawn latent depends on the pictures beside it")


def decoding_gives_pictures(case: Case) -> None:
    """decode returns float pictures [B,3,H,W] in [0, 1], also of latents no picture has."""
    part, size = case.part, case.image_size
    z = Rng(0, range(ROWS)).normal(part.channels, *part.size(size, size)) * 3
    with torch.inference_mode(), global_random_state_kept("decode"):
        images = part.decode(z)
        close(images[1:2], part.decode(z[1:2]), "a decoded picture depends on the latents beside it")
    need(images.shape == (ROWS, 3, size, size), f"decoded pictures have shape {list(images.shape)}")
    need(images.min() >= 0 and images.max() <= 1, "decoded pixels leave [0, 1]")


CHECKS = [latents_have_their_shape, latents_ignore_neighbours, decoding_gives_pictures]

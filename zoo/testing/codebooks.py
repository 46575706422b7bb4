"""Checks of codebooks: codes in range, grids that add up, pictures in [0, 1]."""

from __future__ import annotations

import torch

from zoo.testing.kit import ROWS, Case, close, global_random_state_kept, need


def codes_are_in_range(case: Case) -> None:
    """encode returns [B,N] int64 in [0, K), N being the grids' cells, without gradient, the same each time."""
    part, images = case.part, case.images()
    with global_random_state_kept("encode"):
        codes = part.encode(images)
    grids = case.grids(part)
    cells = sum(h * w for h, w in grids)
    need(codes.shape == (ROWS, cells), f"codes have shape {list(codes.shape)}, the grids {grids} have {cells} cells")
    need(codes.dtype == torch.int64, f"codes are {codes.dtype}, not int64")
    need(codes.min() >= 0 and codes.max() < part.vocab_size, f"codes leave [0, {part.vocab_size})")
    need(torch.equal(codes, part.encode(images)), "the same pictures give other codes the second time")


def encoding_ignores_neighbours(case: Case) -> None:
    """A picture's codes do not depend on the batch around it."""
    part, images = case.of(case.fresh().double()), case.images().double()
    with torch.no_grad():
        together = part.encode(images)
        alone = torch.cat([part.encode(image[None]) for image in images])
    need(torch.equal(together, alone), "a picture's codes depend on the pictures beside it")


def facts_are_true(case: Case) -> None:
    """What the config promised before building is what was built."""
    part, facts = case.part, case.config.facts(case.image_size)
    need(facts.vocab_size == part.vocab_size, f"facts say K = {facts.vocab_size}, the codebook has {part.vocab_size}")
    grids = tuple(tuple(grid) for grid in case.grids(part))
    need(facts.grids == grids, f"facts say grids {facts.grids}, the codebook has {grids}")


def decoding_gives_pictures(case: Case) -> None:
    """decode of any codes returns float pictures [B,3,H,W] in [0, 1] that depend on their own row alone."""
    part, size = case.part, case.image_size
    codes = case.codes(part)
    codes[0], codes[1] = 0, part.vocab_size - 1
    with torch.inference_mode(), global_random_state_kept("decode"):
        images = part.decode(codes, case.grids(part))
        alone = torch.cat([part.decode(row[None], case.grids(part)) for row in codes])
    need(images.shape == (ROWS, 3, size, size), f"decoded pictures have shape {list(images.shape)}, not of {size} px")
    need(images.is_floating_point(), f"decoded pictures are {images.dtype}")
    low, high = float(images.min()), float(images.max())
    need(low >= 0 and high <= 1, f"decoded pixels span [{low:.3g}, {high:.3g}], not within [0, 1]")
    close(images, alone, "a decoded picture depends on the codes beside it")


CHECKS = [codes_are_in_range, encoding_ignores_neighbours, facts_are_true, decoding_gives_pictures]

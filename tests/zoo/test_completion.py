"""Continuing pictures: what is kept, what is drawn, and how pictures come to the model's size."""

import types

import numpy as np
import pytest
import torch
from PIL import Image

from zoo import completion
from zoo.errors import BadData, CannotSample, ConfigError, PartMismatch
from zoo.rng import Rng

SIDE = 8


class Codebook:
    """A code a pixel: 0 to 9 for its red."""

    def encode(self, images):
        return images[:, 0].flatten(1).mul(9).round().long()


class System:
    """Draws codes by prompt and candidate, after those that are given."""

    card, device = "fake", torch.device("cpu")

    def __init__(self, causal=True, grids=((SIDE, SIDE),)):
        self.codebook, self.grids = Codebook(), grids
        self.parts = {"prior": types.SimpleNamespace(causal=causal)}
        self.asked = {}

    def generate(self, prompts, images_per_prompt, seed, prefix, **how):
        self.asked = {"prompts": prompts, "prefix": prefix, **how}
        codes = prefix.repeat_interleave(images_per_prompt, 0)
        drawn = Rng(seed, range(len(codes))).integers(10, codes.shape[1])
        codes = torch.where(codes < 0, drawn, codes)
        return (codes.view(-1, 1, SIDE, SIDE) / 9).expand(-1, 3, -1, -1)


def pictures(count=2):
    return Rng(0, range(count)).integers(10, 1, SIDE, SIDE).div(9).expand(-1, 3, -1, -1)


@pytest.mark.parametrize(("keep", "rows"), [(0.5, 4), (0.25, 2), (0.01, 1), (0.99, 7)])
def test_the_upper_rows_are_given_and_the_rest_is_drawn(keep, rows):
    images, system = pictures(), System()
    done = completion.complete(system, images, 3, keep=keep, seed=1)
    prefix = system.asked["prefix"].view(2, SIDE, SIDE)
    assert (prefix[:, :rows] >= 0).all()
    assert (prefix[:, rows:] == -1).all()
    assert done.rows == rows
    each = done.images.unflatten(0, (2, 3))
    assert torch.allclose(each[:, :, :, :rows], images[:, None, :, :rows].expand(-1, 3, -1, -1, -1))
    assert not torch.equal(each[:, 0], each[:, 1])
    assert torch.equal(done.shown[:, :, :rows], images[:, :, :rows])
    assert (done.shown[:, :, rows:] == completion.BLANK).all()


def test_a_row_is_what_was_given_the_continuations_and_the_original():
    images = pictures()
    done = completion.complete(System(), images, 3)
    rows, captions = completion.in_rows(done, images)
    assert rows.shape == (10, 3, SIDE, SIDE)
    assert captions == ["given", "1", "2", "3", "original"] * 2
    assert torch.equal(rows[5], done.shown[1])
    assert torch.equal(rows[6], done.images[3])
    assert torch.equal(rows[9], images[1])


def test_prompts_are_for_all_or_one_each():
    system = System()
    for given, asked in (((), [None, None]), (["a"], ["a", "a"]), (["a", "b"], ["a", "b"])):
        completion.complete(system, pictures(), 1, prompts=given, chunk=5)
        assert system.asked["prompts"] == asked
    assert system.asked["chunk"] == 5
    with pytest.raises(ConfigError, match="3 prompts for 2 pictures"):
        completion.complete(system, pictures(), 1, prompts=["a"] * 3)


def test_what_cannot_continue_a_picture_is_refused_with_the_reason():
    with pytest.raises(CannotSample, match="masked codes"):
        completion.complete(System(causal=False), pictures(), 1)
    with pytest.raises(PartMismatch, match="2 code grids"):
        completion.complete(System(grids=((2, 2), (4, 4))), pictures(), 1)


def test_a_picture_of_the_size_stays_and_another_is_cropped_and_said(tmp_path):
    exact = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)
    Image.fromarray(exact).save(tmp_path / "exact.png")
    wide = np.zeros((100, 300, 3), np.uint8)
    wide[:, 100:200] = 255  # the middle square
    Image.fromarray(wide).save(tmp_path / "wide.png")
    given = completion.read([str(tmp_path / "exact.png"), str(tmp_path / "wide.png")], SIDE)
    assert np.array_equal(given.images[0].mul(255).round().byte().permute(1, 2, 0).numpy(), exact)
    assert given.images[1].mean() > 0.97
    assert given.notes[0] == ""
    assert "wide.png: 300 x 100 px" in given.notes[1]
    with pytest.raises(BadData, match="there is no picture 'none"):
        completion.read(["none.png"], SIDE)

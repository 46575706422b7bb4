"""Gaussian blur against its own definition."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from zoo.evaluate.blur import blur


def test_no_radius_changes_nothing_and_a_flat_picture_stays():
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(blur(images, 0), images)
    flat = torch.full((1, 3, 32, 20), 0.37)
    for radius in (0.5, 4, 100):
        assert torch.allclose(blur(flat, radius), flat, atol=1e-6)
    with pytest.raises(ValueError, match="0 or more"):
        blur(flat, -1)


@pytest.mark.parametrize("radius", [1.0, 2.0, 4.0])
def test_a_point_becomes_a_gaussian_of_that_deviation(radius):
    image = torch.zeros(1, 1, 65, 65)
    image[0, 0, 32, 32] = 1
    spread = blur(image, radius)[0, 0].double()
    at = torch.arange(65.0, dtype=torch.float64) - 32
    assert float(spread.sum()) == pytest.approx(1, abs=1e-5)
    assert float((spread.sum(0) * at**2).sum()) == pytest.approx(radius**2, rel=1e-3)
    assert torch.allclose(spread, spread.T, atol=1e-9)


def test_it_is_much_like_pils():
    image = (np.random.default_rng(0).random((64, 64, 3)) * 255).astype(np.uint8)
    theirs = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(3))).astype(np.float32) / 255
    ours = blur(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255, 3)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - theirs)[12:-12, 12:-12].max() < 0.02  # PIL's is three box blurs


def test_pictures_do_not_mix():
    images = torch.rand(3, 3, 8, 8)
    assert torch.allclose(blur(images, 1.5)[1:2], blur(images[1:2], 1.5), atol=1e-6)

import numpy as np
import pytest
from PIL import Image

from zoo.data import transforms
from zoo.errors import BadData, UnknownName

STOCHASTIC = {"flip", "crop", "dvae", "dalle-prior", "imagegpt", "imagegpt-finetune", "dit"}


def ramp(width, height):
    """A picture whose red is its column and whose green is its row, in parts of 255."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, np.full_like(x, 7)], -1).round().astype(np.uint8))


def numbers(law, value):
    return np.full(law.draws, value)


def test_known_names():
    assert {name for name, law in transforms.TRANSFORMS.items() if law.stochastic} == STOCHASTIC
    with pytest.raises(UnknownName, match="did you mean 'dvae'"):
        transforms.get("dvea")


@pytest.mark.parametrize("name", transforms.TRANSFORMS)
@pytest.mark.parametrize("shape", [(300, 200), (64, 64), (70, 500), (1, 5000), (3, 2), (4000, 41)])
@pytest.mark.parametrize("value", [1e-7, 0.5, 1 - 1e-7])
def test_every_law_gives_the_square_whatever_comes_in(name, shape, value):
    law = transforms.get(name)
    if name == "dalle-eval" and min(shape) < 40:
        with pytest.raises(BadData, match="40 px or more"):
            law(ramp(*shape), 40, numbers(law, value))
        return
    out = law(ramp(*shape), 40, numbers(law, value))
    assert out.shape == (40, 40, 3)
    assert out.dtype == np.uint8


@pytest.mark.parametrize("name", ["fit", "dalle-eval", "dalle-prior"])
def test_a_picture_of_the_right_size_stays_as_it_is(name):
    law = transforms.get(name)
    picture = ramp(48, 48)
    assert np.array_equal(law(picture, 48, numbers(law, 0.9)), np.asarray(picture))


def test_fit_takes_the_middle():
    out = transforms.get("fit")(ramp(400, 100), 50, np.zeros(0)).astype(int)
    assert out[:, 0, 0].mean() == pytest.approx(255 * 150 / 400, abs=2)
    assert out[:, -1, 0].mean() == pytest.approx(255 * 250 / 400, abs=2)
    assert out[0, :, 1].max() <= 5
    assert out[-1, :, 1].min() >= 250


def extent(name, u, shape=(1000, 1000), size=100):
    """Return the share of the picture that the crop shows, its left end, and whether it is mirrored."""
    out = transforms.get(name)(ramp(*shape), size, np.asarray(u)).astype(float)[size // 2, :, 0] / 255
    pixel = abs(out[-1] - out[0]) / (size - 1)
    return abs(out[-1] - out[0]) + pixel, min(out[0], out[-1]) - pixel / 2, out[0] > out[-1]


def test_dvae_law():
    """Side U[9/8, 12/8] of the target, so the window shows 8/9 to 8/12; both ends are reached."""
    assert extent("dvae", [0, 0, 0, 0, 0, 0.9])[0] == pytest.approx(100 / 112, abs=0.01)  # round(112.5) = 112
    assert extent("dvae", [0, 0, 0.9999, 0, 0, 0.9])[0] == pytest.approx(100 / 150, abs=0.01)
    assert extent("dvae", [0, 0, 0.9999, 0.9999, 0, 0.9])[1] == pytest.approx(50 / 150, abs=0.01)
    assert extent("dvae", [0] * 6)[2]
    assert not extent("dvae", [0, 0, 0, 0, 0, 0.51])[2]
    _, left, _ = extent("dvae", [0.9999, 0, 0, 0, 0, 0.9], shape=(3000, 1000))
    assert left == pytest.approx(2 / 3, abs=0.01)  # the full square comes from anywhere along the long side


def test_dalle_prior_law():
    """The full square from 3/8 to 5/8 of the slack, side U[1, 9/8] of the target, never mirrored."""
    for u, expected in ((0.0, 3 / 8), (0.9999, 5 / 8)):
        _, left, mirrored = extent("dalle-prior", [u, 0, 0, 0, 0], shape=(3000, 1000))
        assert left == pytest.approx(expected * 2 / 3, abs=0.01)
        assert not mirrored
    assert extent("dalle-prior", [0, 0, 0, 0, 0])[0] == pytest.approx(1, abs=0.01)
    assert extent("dalle-prior", [0, 0, 0.9999, 0, 0])[0] == pytest.approx(100 / 112, abs=0.01)


def test_no_law_of_dalle_enlarges_beyond_the_picture():
    """A picture of 1.2 times the target: dVAE's side is at most its own."""
    assert extent("dvae", [0, 0, 0.9999, 0, 0, 0.9], shape=(120, 120))[0] == pytest.approx(100 / 120, abs=0.02)


def test_imagegpt_law():
    assert extent("imagegpt", [0, 0, 0], size=32)[0] == pytest.approx(224 / 256, abs=0.02)
    assert extent("imagegpt", [0.9999, 0, 0], size=32)[0] == pytest.approx(224 / 384, abs=0.02)
    assert extent("imagegpt-eval", [], size=32)[0] == pytest.approx(1, abs=0.02)


def test_finetune_law_moves_by_four_of_thirty_two():
    law = transforms.get("imagegpt-finetune")
    pixels = np.asarray(ramp(32, 32))
    assert np.array_equal(law(ramp(32, 32), 32, np.array([0.5, 0.5, 0.9])), pixels)
    moved = law(ramp(32, 32), 32, np.array([0.9999, 0.5, 0.9]))
    assert np.array_equal(moved[:, :28], pixels[:, 4:])
    assert np.array_equal(moved[:, 28], pixels[:, 30])


def test_crop_keeps_the_scale():
    pixels = np.asarray(ramp(200, 100))
    out = transforms.get("crop")(ramp(200, 100), 32, np.array([0.9999, 0.0]))
    assert np.array_equal(out, pixels[:32, 168:])


def test_random_windows_reach_every_place():
    law = transforms.get("crop")
    lefts = {int(law(ramp(256, 256), 252, np.array([u, 0.5]))[0, 0, 0]) for u in np.linspace(0.001, 0.999, 50)}
    assert lefts == {0, 1, 2, 3, 4}

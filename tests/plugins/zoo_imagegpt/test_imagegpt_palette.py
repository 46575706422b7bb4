"""The palette: fit, nearest colours, order, odd pictures, other priors on it."""

import math

import numpy as np
import pytest
import torch

from zoo.construct import construct
from zoo.errors import BadData, BadWeights, NotReady, PartMismatch
from zoo.interfaces import Batch
from zoo.resolution import resolve_tree
from zoo.rng import Rng
from zoo.testing.kit import Pictures
from zoo_imagegpt.configs import Palette as Config
from zoo_imagegpt.palette import Palette


class Given:
    """A dataset of these pictures."""

    uri = "given"

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def read(self, rows, rng=None):
        return Batch(images=self.images[list(rows)])


def grid(colours):
    """Return codes of all colours once, as one row."""
    return torch.arange(len(colours))[None], ((1, len(colours)),)


@pytest.fixture
def fitted():
    palette = Palette(Config(vocab_size=32))
    palette.fit(Pictures(16), seed=0)
    return palette


def test_every_colour_comes_back_as_its_code(fitted):
    assert fitted.colours.shape == (32, 3)
    assert fitted.colours.abs().max() <= 1
    codes, grids = grid(fitted.colours)
    assert torch.equal(fitted.encode(fitted.decode(codes, grids)), codes)


def test_codes_are_the_nearest_colours_by_squared_distance(fitted, monkeypatch):
    images = Pictures(16).read(range(5)).images
    distance = (images.movedim(1, -1)[..., None, :] * 2 - 1 - fitted.colours).square().sum(-1)
    codes = fitted.encode(images)
    assert torch.equal(codes, distance.argmin(-1).flatten(1))
    monkeypatch.setattr("zoo_imagegpt.palette.AT_ONCE", 32 * 7)  # seven pixels at a time
    assert torch.equal(fitted.encode(images), codes)


def test_decoded_pixels_are_the_papers_whole_steps(fitted):
    codes, grids = grid(fitted.colours)
    expected = np.rint(127.5 * (fitted.colours.double().numpy() + 1)) / 255
    assert np.allclose(fitted.decode(codes, grids)[0, :, 0].T.numpy(), expected, atol=1e-7)


def test_more_colours_reconstruct_better_and_k_means_beats_a_uniform_palette():
    data = Pictures(16)
    images = data.read(range(16)).images

    def error(palette):
        return float((palette.decode(palette.encode(images), ((16, 16),)) - images).square().mean())

    errors = []
    for count in (4, 27, 64):
        palette = Palette(Config(vocab_size=count))
        palette.fit(data, seed=0)
        errors.append(error(palette))
    assert errors == sorted(errors, reverse=True)
    levels = torch.linspace(-1, 1, 3)
    palette = Palette(Config(vocab_size=27))
    palette.load_state_dict({"colours": torch.cartesian_prod(levels, levels, levels)})
    assert errors[1] < error(palette) / 2


def test_one_seed_gives_one_palette_and_nothing_global_is_drawn():
    states = []
    for seed in (0, 0, 1):
        palette = Palette(Config(vocab_size=8, pictures=10, pixels=500))
        palette.fit(Pictures(16), seed=seed)
        states.append(palette.colours)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_fewer_colours_than_clusters_are_kept_exactly():
    colours = torch.tensor([[0, 0, 0], [255, 0, 17], [255, 255, 255]]) / 255
    images = colours[torch.arange(2 * 16).view(2, 4, 4) % 3].movedim(-1, 1)
    palette = Palette(Config(vocab_size=512))
    palette.fit(Given(images), seed=0)
    codes = palette.encode(images)
    assert codes.max() == 2
    assert torch.equal(palette.decode(codes, ((4, 4),)), images)
    assert palette.colours.shape == (512, 3)
    unused = palette.decode(torch.full((1, 16), 511), ((4, 4),))
    assert torch.equal(unused, torch.ones_like(unused))  # the last colour again


def test_a_single_colour_is_a_palette():
    images = torch.full((3, 3, 4, 4), 0.2)
    palette = Palette(Config(vocab_size=16))
    palette.fit(Given(images), seed=0)
    assert not palette.encode(images).any()
    assert torch.allclose(palette.decode(palette.encode(images), ((4, 4),)), images)


def test_a_snake_turns_every_other_row(fitted):
    snake = Palette(Config(vocab_size=32, order="snake"))
    snake.load_state_dict(fitted.state_dict())
    images = Pictures(16).read(range(2)).images
    raster, turned = fitted.encode(images).view(2, 16, 16), snake.encode(images).view(2, 16, 16)
    assert torch.equal(turned[:, ::2], raster[:, ::2])
    assert torch.equal(turned[:, 1::2], raster[:, 1::2].flip(2))
    grids = ((16, 16),)
    assert torch.equal(snake.decode(turned.flatten(1), grids), fitted.decode(raster.flatten(1), grids))


def test_pictures_need_not_be_square(fitted):
    images = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    assert fitted.grids(4, 6) == ((4, 6),)
    assert fitted.decode(fitted.encode(images), ((4, 6),)).shape == images.shape
    with pytest.raises(PartMismatch, match="one grid of 24 codes"):
        fitted.decode(fitted.encode(images), ((4, 5),))


def test_a_palette_that_is_not_fitted_says_so():
    palette = Palette(Config(vocab_size=16))
    assert not palette.ready
    with pytest.raises(NotReady, match="not fitted"):
        palette.encode(torch.rand(1, 3, 4, 4))
    with pytest.raises(BadData, match="given: no pictures"):
        palette.fit(Given(torch.rand(0, 3, 4, 4)), seed=0)


@pytest.mark.parametrize(
    ("colours", "line"),
    [
        (torch.zeros(512, 4), r"has shape \[16, 3\], this one \[512, 4\]$"),
        (torch.zeros(3, 16), r"this one \[3, 16\]$"),
        (torch.zeros(32, 3), "for 32 colours add --set vocab_size=32"),
        (torch.full((16, 3), 200.0), r"lie in \[-1, 1\], these in \[200, 200\]"),
    ],
)
def test_what_is_no_palette_is_refused_in_one_line(colours, line):
    with pytest.raises(BadWeights, match=line):
        Palette(Config(vocab_size=16)).load_state_dict({"colours": colours})


@pytest.mark.parametrize("prior", ["dalle-prior-tiny", "pixelcnn-tiny", "imagegpt-prior-tiny"])
def test_every_prior_learns_pixels(prior):
    overrides = [f"prior={prior}", "prior.reads=nothing", "image_size=8", "codebook=palette-tiny"]
    node, config = resolve_tree("imagegpt-tiny", overrides)
    system = construct(node, config, seed=0)
    system.codebook.fit(Pictures(8), seed=0)
    assert system.stages == {"prior": ("codebook", "prior")}
    batch = system.encode("prior", Pictures(8).read(range(16)))
    assert batch.codes.shape == (16, 64)
    optimiser = torch.optim.Adam(system.prior.parameters(), lr=3e-3)
    losses = []
    for step in range(15):
        loss = system.loss("prior", batch, step=step, rng=Rng(0, range(16), step=step))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < min(losses[0], math.log(16)) - 0.1
    system.mark_ready("prior")
    assert system.generate([None], images_per_prompt=2).shape == (2, 3, 8, 8)

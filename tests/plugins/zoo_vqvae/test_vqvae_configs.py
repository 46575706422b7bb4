"""Sizes, bits and facts of the configs, without torch where none is needed."""

import subprocess
import sys

import pytest
from attrs import evolve

from zoo.errors import ConfigError
from zoo.parts import Ref
from zoo.specs import ModelSpec, locate
from zoo_vqvae import configs, zoo_specs


def test_importing_configs_brings_no_torch():
    code = "import sys, zoo_vqvae, zoo_vqvae.configs; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_spec_can_be_located():
    for spec in zoo_specs():
        assert isinstance(spec, ModelSpec)
        kind = locate(spec.config)
        assert callable(locate(spec.build))
        for path in spec.variants.values():
            assert type(locate(path)()) is kind


def test_bits_of_the_paper():
    imagenet, cifar = configs.vqvae_imagenet(), configs.vqvae_cifar10()
    bits = sum(h * w for h, w in imagenet.facts(128).grids) * 9
    assert 128 * 128 * 24 / bits == pytest.approx(42.667, abs=1e-3)
    codes = sum(h * w for h, w in cifar.facts(32).grids)
    assert codes * 9 == 5760
    assert 32 * 32 * 24 / (codes * 9) == pytest.approx(4.267, abs=1e-3)
    assert codes * 9 / (3 * 32 * 32) == 1.875


def test_facts():
    facts = configs.vqvae().facts(64)
    assert (facts.vocab_size, facts.grids) == (512, ((16, 16),))
    assert configs.vqvae_cifar10().facts(32).grids == ((8, 8),) * 10
    assert configs.vqvae_fsq().facts(32).vocab_size == 240
    latent = configs.vae().facts(32)
    assert (latent.channels, latent.size, latent.bounded) == (8, (8, 8), False)
    bound = evolve(configs.vqvae_latent(), codebook=Ref("vqvae", "codebook", config=configs.vqvae()))
    assert (bound.facts(32).channels, bound.facts(32).size) == (64, (8, 8))


def test_sides_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match="multiples of 4"):
        configs.vqvae().facts(30)


@pytest.mark.parametrize(
    ("config", "bad"),
    [
        (configs.Net, {"widths": ()}),
        (configs.Net, {"widths": (0,)}),
        (configs.Net, {"residual_hidden": 0}),
        (configs.VqVae, {"vocab_size": 1}),
        (configs.VqVae, {"beta": -1.0}),
        (configs.VqVae, {"decay": 1.0}),
        (configs.VqVae, {"revive_below": 1.0}),
        (configs.FsqVae, {"levels": (8, 1)}),
        (configs.Pixels, {"deviation": 0.0}),
        (configs.PixelCnn, {"kernel": 4}),
        (configs.PixelCnn, {"cond_drop": 1.0}),
    ],
)
def test_ranges_name_their_field(config, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        config(**bad)

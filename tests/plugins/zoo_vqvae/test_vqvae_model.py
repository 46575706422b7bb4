"""VQ-VAE: published sizes, the bound, gradient ownership, learning."""

import math

import pytest
import torch
from attrs import evolve

from zoo.errors import ConfigError
from zoo.interfaces import Batch, Codebook, Cond
from zoo.nn.residual import residuals
from zoo.rng import Rng
from zoo_vqvae import configs
from zoo_vqvae.model import VqVae, uniform_prior

torch.set_num_threads(1)
TINY = [
    configs.vqvae_tiny(),
    evolve(configs.vqvae_tiny(), codebook="ema", estimator="rotation"),
    evolve(configs.vqvae_tiny(), books=3),
    evolve(configs.vqvae_tiny(), pixels=configs.Pixels(likelihood="softmax")),
    evolve(configs.vqvae_fsq(), net=configs.vqvae_tiny().net),
    evolve(configs.vqvae_tiny(), net=configs.Net(widths=(8, 8, 8), residual_layers=0, mix=False)),
]
IDS = ["gradient", "ema", "books", "softmax", "fsq", "paper-net"]


def build(config):
    torch.manual_seed(0)
    return VqVae(config)


def pictures(n=4, size=16, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_sizes_of_the_authors_example():
    with torch.device("meta"):
        m = VqVae(configs.VqVae())
    assert (count(m.encoder[:-1]), count(m.encoder[-1]), count(m.decoder), count(m.books)) == (
        364_160, 8_256, 290_307, 32_768,
    )  # fmt: skip
    assert count(m) == 695_491


def test_size_of_the_papers_encoder():
    with torch.device("meta"):
        assert count(VqVae(configs.vqvae_imagenet()).encoder[:-1]) == 2_373_120


@pytest.mark.parametrize("config", TINY, ids=IDS)
def test_interface(config):
    m, images = build(config).eval(), pictures()
    assert isinstance(m, Codebook)
    codes, grids = m.encode(images), m.grids(16, 16)
    assert codes.dtype == torch.int64
    assert codes.shape == (4, sum(h * w for h, w in grids))
    assert codes.min() >= 0
    assert codes.max() < m.vocab_size == config.facts(16).vocab_size
    assert grids == config.facts(16).grids
    out = m.decode(codes, grids)
    assert out.shape == images.shape
    assert out.min() >= 0
    assert out.max() <= 1
    assert torch.equal(m.encode(images[1:2]), codes[1:2])


@pytest.mark.parametrize("config", TINY, ids=IDS)
def test_loss_of_the_training_pass_and_the_interface_agree(config):
    m, images = build(config).eval(), pictures()
    losses = m.loss(Batch(images=images), Cond(), step=0, rng=Rng(0, range(4)))
    decoded = m.decode(m.encode(images), m.grids(16, 16))
    assert {"loss", "reconstruction", "rmse", "perplexity", "usage"} <= set(losses)
    rmse = (decoded - images).square().mean().sqrt()
    assert losses["rmse"].item() == pytest.approx(rmse.item(), rel=1e-2)
    assert all(x.dim() == 0 and not (k != "loss" and x.requires_grad) for k, x in losses.items())


@pytest.mark.parametrize("config", TINY, ids=IDS)
def test_it_learns(config):
    m = build(config).train()
    images = pictures(8, 1).expand(-1, -1, 16, 16)
    optimiser = torch.optim.Adam(m.parameters(), lr=3e-3)
    first = None
    for step in range(200):
        losses = m.loss(Batch(images=images), Cond(), step=step, rng=Rng(0, range(8), step=step))
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        first = first or losses["reconstruction"].item()
        if losses["reconstruction"].item() < 0.7 * first:
            return
    pytest.fail("the reconstruction error did not fall by 30 %")


def test_reconstruction_never_reaches_the_codes():
    m = build(evolve(configs.vqvae_tiny(), beta=0.0)).eval()
    z = m.latents(pictures())
    out = m.decoder(m.books[0](z).z)
    out.square().mean().backward()
    assert m.books[0].codes.weight.grad is None
    assert all(p.grad.abs().sum() > 0 for p in m.encoder.parameters())


def test_loss_is_a_mean_over_samples():
    m = build(configs.vqvae_tiny()).eval()
    images = pictures(6)

    def loss(rows):
        return m.loss(Batch(images=images[rows]), Cond(), step=0, rng=Rng(0, range(6))[rows])["loss"]

    halves = (loss(slice(0, 3)) + loss(slice(3, 6))) / 2
    torch.testing.assert_close(loss(slice(0, 6)), halves)


def test_kl_is_ln_k_for_each_code():
    m, images = build(configs.vqvae_tiny()).eval(), pictures()
    codes = m.encode(images)
    assert uniform_prior(codes, 64).tolist() == pytest.approx([-16 * math.log(64)] * 4)


def test_bits_per_dim():
    softmax = evolve(configs.vqvae_tiny(), pixels=configs.Pixels(likelihood="softmax"))
    m, images = build(softmax).eval(), pictures()
    torch.nn.init.zeros_(m.decoder[-1].weight)
    torch.nn.init.zeros_(m.decoder[-1].bias)
    code_bits = 16 * 6 / (3 * 16 * 16)
    assert m.bits_per_dim(images).tolist() == pytest.approx([8 + code_bits] * 4, rel=1e-5)
    sure = m.bits_per_dim(images, lambda codes: torch.zeros(len(codes)))
    assert sure.tolist() == pytest.approx([8.0] * 4, rel=1e-5)


def test_books_do_not_mix():
    m = build(evolve(configs.vqvae_tiny(), books=3)).eval()
    codes, grids = m.encode(pictures()), m.grids(16, 16)
    vectors = m.vectors(codes, grids)
    changed = codes.clone()
    changed[:, 16:32] = (codes[:, 16:32] + 1) % 64
    same = (m.vectors(changed, grids) == vectors).flatten(2).all(-1).all(0)
    assert same[:16].all()
    assert not same[16:32].any()
    assert same[32:].all()


def test_foreign_grids_and_sizes_are_refused():
    m = build(configs.vqvae_tiny()).eval()
    with pytest.raises(ConfigError, match="grids"):
        m.decode(torch.zeros(1, 16, dtype=torch.int64), ((4, 4), (4, 4)))
    with pytest.raises(ConfigError, match="grids"):
        m.decode(torch.zeros(1, 15, dtype=torch.int64), ((4, 4),))
    with pytest.raises(ConfigError, match="multiples of 4"):
        m.encode(torch.zeros(1, 3, 18, 16))
    assert m.encode(torch.zeros(1, 3, 8, 24)).shape == (1, 12)


def test_accumulation_is_refused_where_codes_learn_from_the_whole_batch():
    assert VqVae(configs.vqvae_tiny()).whole_batch
    assert not VqVae(evolve(configs.vqvae_tiny(), revive_below=0.0)).whole_batch
    assert not VqVae(TINY[4]).whole_batch


def test_double_meta_bfloat16_and_residual_sums():
    with torch.device("meta"):
        assert all(p.is_meta for p in VqVae(configs.vqvae_tiny()).parameters())
    m = build(configs.vqvae_tiny()).double().eval()
    assert (
        m.loss(Batch(images=pictures().double()), Cond(), step=0, rng=Rng(0, range(4)))["loss"].dtype == torch.float64
    )
    half = build(configs.vqvae_tiny()).bfloat16().eval()
    assert torch.isfinite(half.decode(half.encode(pictures()), half.grids(16, 16))).all()
    assert len(list(residuals(m))) == 2


def test_a_resumed_run_is_the_same_run():
    config = evolve(configs.vqvae_tiny(), codebook="ema")

    def run(model, steps):
        model.train()
        return [
            model.loss(Batch(images=pictures(4, 16, s)), Cond(), step=s, rng=Rng(0, range(4), step=s))["loss"].item()
            for s in steps
        ]

    whole = build(config)
    losses = run(whole, range(6))
    first, second = build(config), VqVae(config)
    run(first, range(3))
    second.load_state_dict(first.state_dict())
    assert run(second, range(3, 6)) == losses[3:]
    assert all(torch.equal(x, second.state_dict()[k]) for k, x in whole.state_dict().items())

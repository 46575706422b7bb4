"""The VAE's bound and its units, and the VQ-VAE's latents."""

import math

import pytest
import torch
from attrs import evolve

from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond, Latent
from zoo.parts import Ref
from zoo.rng import Rng
from zoo_vqvae import configs
from zoo_vqvae.latent import Vae, VqLatent, unit_curves
from zoo_vqvae.model import VqVae

torch.set_num_threads(1)
CONFIG = evolve(configs.vae(), net=configs.vqvae_tiny().net, channels=4)


def pictures(n=4, size=16, seed=0):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def vae(config=CONFIG):
    torch.manual_seed(0)
    return Vae(config)


def latent(codebook_config):
    torch.manual_seed(0)
    codebook = VqVae(codebook_config)
    config = evolve(configs.vqvae_latent(), codebook=Ref("vqvae", "codebook", config=codebook_config))
    return VqLatent(config, codebook=codebook).eval()


def test_interface():
    m, images = vae().eval(), pictures()
    assert isinstance(m, Latent)
    z = m.encode(images)
    assert z.shape == (4, m.channels, *m.size(16, 16)) == (4, 4, 4, 4)
    assert torch.equal(z, m.encode(images))
    assert not torch.equal(z, m.encode(images, Rng(0, range(4))))
    out = m.decode(z)
    assert out.shape == images.shape
    assert out.min() >= 0
    assert out.max() <= 1


def test_equal_size():
    """The VAE differs from the VQ-VAE by the two maps that touch the latent, and has no codes."""
    with torch.device("meta"):
        ours, theirs = Vae(configs.vae()), VqVae(configs.vqvae())
    for a, b in ((ours.encoder[:-1], theirs.encoder[:-1]), (ours.decoder[1:], theirs.decoder[1:])):
        assert [p.shape for p in a.parameters()] == [p.shape for p in b.parameters()]


def test_sampling_follows_the_posterior():
    m, images = vae().eval(), pictures(1)
    mean, logvar = m.posterior(images)
    z = m.encode(images.expand(4000, -1, -1, -1), Rng(0, range(4000)))
    torch.testing.assert_close(z.mean(0), mean[0].detach(), atol=0.08, rtol=0)
    torch.testing.assert_close(z.std(0), (logvar[0] / 2).exp().detach(), atol=0.05, rtol=0.05)


def test_loss_is_the_negative_bound():
    m, images = vae().eval(), pictures()
    losses = m.loss(Batch(images=images), Cond(), step=0, rng=Rng(0, range(4)))
    mean, logvar = m.posterior(images)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    assert losses["kl"].item() == pytest.approx(kl.mean().item(), rel=1e-4)
    bits = m.bits_per_dim(images, Rng(0, range(4))).mean()
    assert losses["bits_per_dim"].item() == pytest.approx(bits.item(), rel=1e-5)
    assert losses["loss"].item() / math.log(2) == pytest.approx(bits.item(), rel=1e-5)


def test_a_collapsed_posterior_shows():
    m, images = vae().eval(), pictures()
    torch.nn.init.zeros_(m.encoder[-1].weight)
    torch.nn.init.zeros_(m.encoder[-1].bias)
    losses = m.loss(Batch(images=images), Cond(), step=0, rng=Rng(0, range(4)))
    assert losses["kl"] == 0
    assert losses["active_units"] == 0
    assert not m.kl_units(images).any()
    with torch.no_grad():
        m.encoder[-1].bias[0] = 1.0  # the mean of one channel of four: KL of 1/2 nat in each of its places
    losses = m.loss(Batch(images=images), Cond(), step=0, rng=Rng(0, range(4)))
    assert losses["active_units"].item() == 0.25
    assert losses["kl_max"].item() == pytest.approx(0.5)
    assert m.kl_units(images)[0].mean().item() == pytest.approx(0.5)


def test_unit_curves():
    curves = unit_curves(torch.tensor([[0.0, 0.4], [0.0, 0.2]]))
    assert curves["kl"].item() == pytest.approx(0.3)
    assert curves["active_units"].item() == 0.5
    assert curves["kl_per_unit"].item() == pytest.approx(0.15)


def test_scale_is_tracked_in_training_and_undone_by_decode():
    m, images = vae().train(), pictures(16)
    with torch.no_grad():
        m.encoder[-1].weight *= 30
    m.loss(Batch(images=images), Cond(), step=0, rng=Rng(0, range(16)))
    m.eval()
    assert m.mean_square > 2
    z = m.encode(images, Rng(0, range(16)))
    assert z.square().mean().sqrt().item() == pytest.approx(1, abs=0.05)
    mean, _ = m.posterior(images)
    torch.testing.assert_close(m.decode(m.encode(images)), m.pixels.decode(m.decoder(mean)).detach())
    before = m.mean_square.clone()
    m.loss(Batch(images=images), Cond(), step=1, rng=Rng(0, range(16)))
    m.train().loss(Batch(images=images * torch.nan), Cond(), step=1, rng=Rng(0, range(16)))
    assert torch.equal(m.mean_square, before), "only finite training steps count"


def test_vae_learns_and_is_double():
    m = vae().train()
    optimiser = torch.optim.Adam(m.parameters(), lr=3e-3)
    images, first = pictures(8, 1).expand(-1, -1, 16, 16), None
    for step in range(200):
        losses = m.loss(Batch(images=images), Cond(), step=step, rng=Rng(0, range(8), step=step))
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        first = first or losses["loss"].item()
        if losses["loss"].item() < 0.7 * first:
            break
    else:
        pytest.fail("the bound did not fall by 30 %")
    wide = vae().double().eval()
    assert wide.decode(wide.encode(pictures().double(), Rng(0, range(4)))).dtype == torch.float64


FSQ = evolve(configs.vqvae_fsq(), net=configs.vqvae_tiny().net)


@pytest.mark.parametrize("config", [configs.vqvae_tiny(), FSQ], ids=["vq", "fsq"])
def test_vq_latent_decodes_through_the_codes(config):
    m, images = latent(config), pictures()
    assert isinstance(m, Latent)
    z = m.encode(images)
    assert z.shape == (4, m.channels, *m.size(16, 16))
    assert m.channels == config.channels
    through_codes = m.codebook.decode(m.codebook.encode(images), m.codebook.grids(16, 16))
    torch.testing.assert_close(m.decode(z), through_codes)
    torch.testing.assert_close(m.decode(z + 1e-6), through_codes)


def test_vq_latent_is_near_unit_scale_after_codes_have_moved_to_the_data():
    m = latent(evolve(configs.vqvae_tiny(), codebook="ema"))
    with torch.no_grad():
        m.codebook.encoder[-1].weight *= 20
    m.codebook.train()
    for step in range(3):
        m.codebook.loss(Batch(images=pictures(8)), Cond(), step=step, rng=Rng(0, range(8), step=step))
    m.codebook.eval()
    assert 0.8 < m.encode(pictures(8)).square().mean().sqrt() < 1.25


def test_vq_latent_has_no_state_and_takes_its_codebook_along():
    m = latent(configs.vqvae_tiny())
    assert not m.state_dict()
    assert m.double().codebook.dtype == torch.float64
    assert m.encode(pictures().double()).dtype == torch.float64


def test_vq_latent_refuses_codebooks_without_vectors():
    config = evolve(configs.vqvae_latent(), codebook=Ref("dvae", "codebook"))
    with pytest.raises(PartMismatch, match="dvae"):
        VqLatent(config, codebook=torch.nn.Identity())

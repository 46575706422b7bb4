"""The KL autoencoder as a latent: its posterior, its loss, its scale, training, and bad input."""

import attrs
import pytest
import torch

import zoo
from zoo.data.shapes import open_shapes
from zoo.errors import ConfigError, PartMismatch
from zoo.interfaces import Batch, Cond, Latent
from zoo.nn.residual import checkpoint_branches
from zoo.rng import Rng
from zoo_vqgan import kl_configs
from zoo_vqgan.kl import Kl, kl_to_normal
from zoo_vqgan.model import pixels


def tiny(**fields):
    torch.manual_seed(0)
    return Kl(attrs.evolve(kl_configs.kl_tiny(), **fields))


def loss_of(model, images, step=0, seed=0):
    return model.loss(Batch(images=images), Cond(), step=step, rng=Rng(seed, range(len(images)), step=step))


def spread(model, by):
    """Make a model's posterior wider or narrower."""
    with torch.no_grad():
        model.before.weight *= by
    return model


def test_is_a_latent_of_any_whole_grid():
    model = tiny().eval()
    assert isinstance(model, Latent)
    assert model.facts(16) == zoo.resolve("kl-tiny").facts(16)
    for height, width in ((16, 16), (8, 24)):
        images = torch.rand(3, 3, height, width)
        z = model.encode(images)
        assert z.shape == (3, 4, *model.size(height, width)) == (3, 4, height // 4, width // 4)
        out = model.decode(z)
        assert out.shape == images.shape
        assert 0 <= float(out.min()) <= float(out.max()) <= 1


def test_sampling_follows_the_posterior():
    model, images = tiny(scale=0.5).eval(), torch.rand(1, 3, 8, 8)
    mean, logvar = (x[0].detach() for x in model.posterior(images))
    z = model.encode(images.expand(4000, -1, -1, -1), Rng(0, range(4000)))
    torch.testing.assert_close(z.mean(0), 0.5 * mean, atol=0.05, rtol=0)
    torch.testing.assert_close(z.std(0), 0.5 * (logvar / 2).exp(), atol=0.02, rtol=0.05)
    torch.testing.assert_close(model.encode(images)[0], 0.5 * mean)


def test_the_log_variance_is_clamped():
    with torch.no_grad():
        _, logvar = spread(tiny(), 1e6).posterior(torch.rand(4, 3, 16, 16))
    assert (float(logvar.min()), float(logvar.max())) == (-30, 20)


def test_kl_is_that_of_two_normals():
    mean, logvar = torch.randn(2, 3, 4, 4, 4, dtype=torch.float64)
    posterior = torch.distributions.Normal(mean, (logvar / 2).exp())
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_to_normal(mean, logvar), kl.flatten(1).sum(1))


def test_loss_is_l1_and_kl_summed_over_a_picture_divided_by_its_values():
    model, images = tiny(kl_weight=0.3).double(), torch.rand(4, 3, 16, 16, dtype=torch.float64)
    losses = loss_of(model, images)
    with torch.no_grad():
        mean, logvar = model.posterior(images)
        out = model.paint(model.encode(images, Rng(0, range(4))) / model.scale)
        l1_B = (out - (2 * images - 1)).abs().flatten(1).sum(1)
        total = (l1_B + 0.3 * kl_to_normal(mean, logvar)).mean() / (3 * 16 * 16)
    assert float(losses["loss"].detach()) == pytest.approx(float(total))
    assert float(losses["reconstruction"]) == pytest.approx(float(l1_B.mean()) / 768)
    assert float(losses["kl"]) == pytest.approx(float(kl_to_normal(mean, logvar).mean()))
    rmse = (((out + 1) / 2).clamp(0, 1) - images).square().mean().sqrt()
    assert float(losses["rmse"]) == pytest.approx(float(rmse))
    assert set(losses) == {"loss", "reconstruction", "rmse", "kl", "latent_std"}


def test_a_measured_scale_is_tracked_in_training_alone():
    model, images = spread(tiny(), 8).train(), torch.rand(16, 3, 16, 16)
    losses = loss_of(model, images)
    assert float(model.mean_square) > 2
    assert float(losses["latent_std"]) > 1.4
    model.eval()
    z = model.encode(images, Rng(0, range(16)))
    assert float(z.square().mean().sqrt()) == pytest.approx(1, abs=1e-3), "the first update counts alone"
    with torch.no_grad():
        mean, _ = model.posterior(images)
        torch.testing.assert_close(model.decode(model.encode(images)), pixels(model.paint(mean)))
    before = model.mean_square.clone()
    loss_of(model, images, step=1)
    loss_of(model.train(), images * torch.nan, step=1)
    assert torch.equal(model.mean_square, before), "only finite training steps count"
    loss_of(model, images / 2, step=2)
    assert not torch.equal(model.mean_square, before)
    assert int(model.updates) == 2


def test_a_given_scale_is_no_state():
    model = tiny(scale=0.25).train()
    loss_of(model, torch.rand(2, 3, 16, 16))
    assert model.scale == 0.25
    assert not dict(model.named_buffers())


def test_training_lowers_the_loss_on_shapes():
    model, data = tiny().train(), open_shapes("", split="train", size=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3, betas=(0.9, 0.99))
    images = data.read(range(16)).images
    start = loss_of(model, images)
    for step in range(60):
        optimizer.zero_grad()
        loss_of(model, images, step=step)["loss"].backward()
        optimizer.step()
    end = loss_of(model, images)
    assert float(end["reconstruction"]) < 0.5 * float(start["reconstruction"])
    assert float(end["rmse"]) < 0.7 * float(start["rmse"])


def test_recomputed_branches_change_nothing():
    model, images = tiny().double().train(), torch.rand(2, 3, 16, 16, dtype=torch.float64)
    loss_of(model, images)["loss"].backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    checkpoint_branches(model)
    loss_of(model, images)["loss"].backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))


def test_stable_diffusions_card():
    config = zoo.resolve("kl-f8")
    assert (config.scale, config.kl_weight, config.image_size) == (0.18215, 1e-6, 256)
    facts = config.facts(512)
    assert (facts.channels, facts.size, facts.bounded) == (4, (64, 64), False)
    built = zoo.build("kl-f8", device="meta")
    assert sum(p.numel() for p in built.parameters()) == 83_653_863


def test_a_denoiser_works_on_it():
    config = zoo.resolve("imagen-tiny", ["latent=kl-tiny", "base_size=32", "tokenizer=none", "text_encoder=none",
                                         "base.reads=nothing", "sr32=none"])  # fmt: skip
    assert (config.base.channels, config.base.size) == (4, (8, 8))


def test_pictures_that_do_not_fit_are_refused():
    model = tiny()
    for call in (lambda: model.size(16, 18), lambda: model.encode(torch.rand(1, 3, 18, 16)), lambda: model.facts(2)):
        with pytest.raises(ConfigError, match="multiples of 4"):
            call()
    with pytest.raises(PartMismatch, match="pictures"):
        model.loss(Batch(), Cond(), step=0, rng=Rng(0, range(1)))


@pytest.mark.parametrize("fields", [
    {"image_size": 30}, {"scale": 0.0}, {"channels": 0}, {"kl_weight": -1.0},
])  # fmt: skip
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        attrs.evolve(kl_configs.kl_f8(), **fields)

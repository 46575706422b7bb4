"""The dVAE's objective against what the paper states: likelihood, KL, pixel map, relaxation, schedules."""

import math

import attrs
import pytest
import torch

from zoo_dvae import configs
from zoo_dvae.losses import kl_to_uniform, logit_laplace_nll, map_pixels, relax, unmap_pixels
from zoo_dvae.schedules import cosine


def test_pixel_map_ends_and_inverse():
    assert map_pixels(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.1).tolist() == pytest.approx([0.1, 0.9])
    x = torch.linspace(0, 1, 257, dtype=torch.float64)
    assert torch.allclose(unmap_pixels(map_pixels(x, 0.1), 0.1), x, atol=1e-14)
    assert unmap_pixels(torch.tensor([0.02, 0.98]), 0.1).tolist() == [0, 1]


@pytest.mark.parametrize(("mu", "b"), [(0.0, 1.0), (1.3, 0.3), (-2.0, 0.7), (0.4, 0.05)])
def test_logit_laplace_integrates_to_one(mu, b):
    # Integrate over u = logit x, where dx = x (1 - x) du: the density's poles at 0 and 1 become thin tails.
    u = torch.linspace(mu - 30 * b, mu + 30 * b, 400_001, dtype=torch.float64)
    x = torch.sigmoid(u)
    nll = logit_laplace_nll(x, torch.tensor(mu, dtype=torch.float64), torch.tensor(math.log(b), dtype=torch.float64))
    assert float(torch.trapezoid(torch.exp(-nll) * x * (1 - x), u)) == pytest.approx(1, abs=1e-6)


def test_logit_laplace_value_by_hand():
    x, mu, b = 0.3, 0.2, 0.5
    density = math.exp(-abs(math.log(x / (1 - x)) - mu) / b) / (2 * b * x * (1 - x))
    nll = logit_laplace_nll(*torch.tensor([x, mu, math.log(b)], dtype=torch.float64))
    assert float(nll) == pytest.approx(-math.log(density), abs=1e-12)


def test_best_mu_is_the_logit_of_the_pixel():
    x = torch.tensor([0.1, 0.35, 0.5, 0.9], dtype=torch.float64)
    mu = torch.linspace(-4, 4, 8_001, dtype=torch.float64)
    nll = logit_laplace_nll(x[:, None], mu, torch.zeros(()))
    assert torch.allclose(mu[nll.argmin(1)], torch.logit(x), atol=1e-3)


def test_kl_of_uniform_and_of_one_hot_logits():
    uniform = torch.full((32, 32, 8192), 3.7)
    assert float(kl_to_uniform(uniform).abs().max()) < 1e-5
    sharp = torch.zeros(1, 8192, dtype=torch.float64)
    sharp[0, 5] = 1e4
    per_position = float(kl_to_uniform(sharp))
    assert per_position == pytest.approx(9.010913, abs=1e-6)
    assert 1024 * per_position == pytest.approx(9227.18, abs=0.01)
    assert 6.6 * 1024 * per_position / (256 * 256 * 3) == pytest.approx(0.30975, abs=1e-5)


def test_kl_against_brute_force():
    logits = torch.randn(3, 7, dtype=torch.float64)
    expected = [sum(p * math.log(p * 7) for p in row) for row in logits.softmax(-1).tolist()]
    assert kl_to_uniform(logits).tolist() == pytest.approx(expected)


def test_relaxation_samples_the_posterior_and_hardens():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(200_000, 3)
    gumbel = -torch.log(-torch.log(torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0)).clamp(1e-9)))
    z = relax(logits, gumbel, 1 / 16)
    share = torch.bincount(z.argmax(-1), minlength=3) / len(z)
    assert torch.allclose(share, logits[0].softmax(0), atol=5e-3)
    assert torch.allclose(z.sum(-1), torch.ones(()), atol=1e-5)
    assert float(z.max(-1).values.mean()) > 0.95 > 0.75 > float(relax(logits, gumbel, 1.0).max(-1).values.mean())


def test_schedule_ends_and_middles():
    config = configs.dvae_8192()
    assert config.temperature_at(0) == 1
    assert config.temperature_at(75_000) == pytest.approx(0.53125)
    assert [config.temperature_at(s) for s in (150_000, 3_000_000)] == [1 / 16] * 2
    assert config.kl_weight_at(0) == pytest.approx(0)
    assert config.kl_weight_at(2_500) == pytest.approx(3.3)
    assert [config.kl_weight_at(s) for s in (5_000, 10**7)] == [6.6] * 2
    recipe = config.train
    assert cosine(recipe.lr, recipe.lr_end, recipe.decay_steps, 600_000) == pytest.approx(5.0625e-5)
    assert cosine(3, 7, 0, 0) == 7


def test_small_variants_may_anneal_the_other_way():
    config = attrs.evolve(
        configs.dvae_8192(), kl_weight_start=3.0, kl_weight=1.0, kl_updates=100,
        log_scale_start=-1.0, log_scale_min=-3.0, log_scale_updates=10,
    )  # fmt: skip
    assert [config.kl_weight_at(s) for s in (0, 50, 100)] == pytest.approx([3, 2, 1])
    assert [config.log_scale_min_at(s) for s in (0, 5, 99)] == pytest.approx([-1, -2, -3])
    assert configs.dvae_8192().log_scale_min_at(7) is None
    assert attrs.evolve(configs.dvae_8192(), log_scale_min=-3.0).log_scale_min_at(0) == -3


def test_paper_recipe():
    r = configs.dvae_8192().train
    assert (r.optimizer, r.betas, r.eps, r.weight_decay) == ("adamw", (0.9, 0.999), 1e-8, 1e-4)
    assert (r.lr, r.lr_end, r.schedule, r.decay_steps) == (1e-4, 1.25e-6, "cosine", 1_200_000)
    assert (r.ema, r.batch, r.steps, r.transform, r.clip) == (0.999, 512, 3_000_000, "dvae", None)

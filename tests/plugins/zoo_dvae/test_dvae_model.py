"""The dVAE as a codebook: sizes, shapes, codes, loss, randomness, precision, bad input."""

import attrs
import pytest
import torch

from zoo.errors import ConfigError, PartMismatch
from zoo.interfaces import Batch, Codebook, Cond
from zoo.nn.residual import checkpoint_branches, residuals
from zoo.rng import Rng
from zoo_dvae import configs
from zoo_dvae.model import Dvae


@pytest.fixture(autouse=True)
def _quiet():
    torch.set_num_threads(1)
    torch.manual_seed(0)


def randomise(module, std=0.2):
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0, std)
    return module


def pictures(n, size=16, seed=0):
    """Flat random colours with a random bar: learnable, and different from one another."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 1, 1, generator=g).expand(n, 3, size, size).clone()
    for i in range(n):
        a = int(torch.randint(size - 4, (1,), generator=g))
        x[i, :, a : a + 4] = torch.rand(3, 1, 1, generator=g)
    return x


def count(module):
    return sum(p.numel() for p in module.parameters())


def loss_of(model, images, step=0, rows=None, seed=0):
    rng = Rng(seed, rows if rows is not None else range(len(images)), step=step)
    return model.loss(Batch(images=images), Cond(), step=step, rng=rng)


def test_paper_size_counts_shapes_and_gain():
    with torch.device("meta"):
        model = Dvae(configs.dvae_8192())
        images = torch.empty(2, 3, 256, 256)
    assert (count(model.encoder), count(model.decoder), count(model)) == (53_786_240, 43_829_766, 97_616_006)
    assert model.grids(256, 256) == ((32, 32),)
    logits = model.logits(images)
    assert logits.shape == (2, 32, 32, 8192)
    assert model.decoder(logits.softmax(-1)).shape == (2, 6, 256, 256)
    assert model.encode(images).shape == (2, 1024)
    blocks = list(residuals(model))
    assert len(blocks) == 16
    assert {block.gain for _, block in blocks} == {1 / 64}


def test_paper_compression():
    (grid,) = configs.dvae_8192().facts(256).grids
    codes = grid[0] * grid[1]
    assert 256 * 256 * 24 / (codes * 13) == pytest.approx(118.15, abs=0.005)
    assert 256 * 256 * 3 / codes == 192


def test_variants_are_what_their_names_say():
    small, tiny = configs.dvae(), configs.dvae_tiny()
    assert small.facts(32).grids == ((8, 8),)
    assert small.facts(32).vocab_size == small.vocab_size
    assert count(Dvae(tiny)) < 1_000_000


def test_is_a_codebook_and_round_trips_shapes():
    model = Dvae(configs.dvae_tiny())
    assert isinstance(model, Codebook)
    for height, width in ((16, 16), (8, 24)):
        images = torch.rand(3, 3, height, width)
        grids = model.grids(height, width)
        codes = model.encode(images)
        assert codes.dtype == torch.int64
        assert codes.shape == (3, height * width // 16)
        assert 0 <= int(codes.min()) <= int(codes.max()) < model.vocab_size
        out = model.decode(codes, grids).detach()
        assert out.shape == images.shape
        assert 0 <= float(out.min()) <= float(out.max()) <= 1


def test_codes_are_in_raster_order():
    model = randomise(Dvae(configs.dvae_tiny()))
    images = torch.rand(1, 3, 16, 24)
    logits = model.logits(images)
    assert torch.equal(model.encode(images)[0].view(4, 6), logits[0].argmax(-1))
    # Moving one code moves the pixels of its cell most.
    codes = model.encode(images)
    other = codes.clone()
    other[0, 6 + 4] = (other[0, 10] + 1) % model.vocab_size
    change = (model.decoder(other.view(1, 4, 6)) - model.decoder(codes.view(1, 4, 6))).abs().sum(1)[0]
    row, column = divmod(int(change.flatten().argmax()), 24)
    assert abs(row - 5.5) < 6
    assert abs(column - 17.5) < 6


def test_hard_codes_equal_the_one_hot_product():
    model = randomise(Dvae(configs.dvae_tiny())).double()
    codes = torch.randint(model.vocab_size, (2, 4, 4))
    one_hot = torch.nn.functional.one_hot(codes, model.vocab_size).double()
    assert torch.allclose(model.decoder(codes), model.decoder(one_hot), rtol=1e-12)


def test_initialisation_follows_fan_in():
    model = Dvae(attrs.evolve(configs.dvae_8192(), n_hid=64, n_init=64, vocab_size=512))
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert not p.any(), name
        elif p.numel() > 2_000:
            assert float(p.detach().std()) == pytest.approx(p[0].numel() ** -0.5, rel=0.15), name


def test_settings_of_the_small_variants():
    plain = randomise(Dvae(attrs.evolve(configs.dvae_tiny(), logit_gain=1.0, mean=0.0, std=1.0, code_std=None)))
    other = Dvae(attrs.evolve(plain.config, logit_gain=8.0, std=0.5, code_std=2.0))
    assert float(other.decoder.input.weight.detach().std()) == pytest.approx(2.0, rel=0.2)
    with torch.no_grad():
        other.load_state_dict(plain.state_dict())
        other.encoder.input.weight.mul_(0.5)  # undoes the division by std
        images = pictures(2)
        assert torch.allclose(other.logits(images), 8 * plain.logits(images), rtol=1e-4, atol=1e-4)
    # At birth a flat picture of the mean's colour has no logits to speak of, and the decoder paints that colour.
    config = attrs.evolve(plain.config, mean=0.8)
    born = Dvae(config)
    flat = torch.full((1, 3, 16, 16), (config.mean - config.epsilon) / (1 - 2 * config.epsilon))
    assert float(born.logits(flat).detach().abs().max()) < 1e-4
    painted = born.decode(born.encode(flat), ((4, 4),)).detach()
    assert float((painted - flat).abs().mean()) < 0.1


def test_loss_is_the_scaled_negative_elbo():
    config = attrs.evolve(configs.dvae_tiny(), kl_updates=0, log_scale_min=None)
    model = randomise(Dvae(config)).double()
    losses = loss_of(model, pictures(4).double(), step=7)
    # 16 positions and 768 values: kl is a mean per position, the loss divides sums by the number of values.
    expected = losses["recon"] + config.kl_weight * losses["kl"] * 16 / 768
    assert float(losses["loss"]) == pytest.approx(float(expected), rel=1e-6)
    assert float(losses["kl_weight"]) == pytest.approx(config.kl_weight)
    assert float(losses["temperature"]) == pytest.approx(config.temperature_at(7))
    codes = model.encode(pictures(4).double())
    assert int(losses["usage"]) == len(codes.unique())
    share = torch.bincount(codes.flatten()).double() / codes.numel()
    assert float(losses["perplexity"]) == pytest.approx(float(torch.exp(-torch.xlogy(share, share).sum())), rel=1e-5)


def test_lower_bound_of_the_scale():
    model = randomise(Dvae(attrs.evolve(configs.dvae_tiny(), log_scale_min=-1.0)))
    with torch.no_grad():
        model.decoder.output.bias[3:] = -60.0
    free = Dvae(attrs.evolve(model.config, log_scale_min=None))
    free.load_state_dict(model.state_dict())
    images = pictures(2)
    assert float(loss_of(model, images)["loss"].detach()) < 1e3 < float(loss_of(free, images)["loss"].detach())


def test_micro_batches_average_to_the_whole_batch():
    model = randomise(Dvae(configs.dvae_tiny())).double()
    images = pictures(6).double()

    def run(parts):
        model.zero_grad()
        total = 0.0
        for rows in parts:
            loss = loss_of(model, images[rows.start : rows.stop], step=30, rows=rows)["loss"] * len(rows) / 6
            loss.backward()
            total += float(loss.detach())
        return total, [p.grad.clone() for p in model.parameters()]

    (whole, grads), (halves, grads_of_halves) = run([range(6)]), run([range(3), range(3, 6)])
    assert halves == pytest.approx(whole, rel=1e-12)
    for a, b in zip(grads, grads_of_halves, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_noise_comes_from_the_given_source_alone():
    model = randomise(Dvae(configs.dvae_tiny()))
    images = pictures(4)
    first = loss_of(model, images, step=3)["loss"]
    torch.manual_seed(99)
    assert torch.equal(first, loss_of(model, images, step=3)["loss"])
    assert not torch.equal(first, loss_of(model, images, step=3, seed=1)["loss"])
    assert not torch.equal(first, loss_of(model, images, step=3, rows=range(10, 14))["loss"])


def test_every_parameter_gets_a_gradient():
    model = Dvae(attrs.evolve(configs.dvae_tiny(), n_hid=32))  # narrower, a ReLU may be dead by chance
    loss_of(model, pictures(8), step=5)["loss"].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_recomputed_branches_change_nothing():
    model = randomise(Dvae(configs.dvae_tiny())).double()
    images = pictures(2).double()
    loss_of(model, images)["loss"].backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    checkpoint_branches(model)
    loss_of(model, images)["loss"].backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))


def test_a_few_steps_of_training_lower_the_loss():
    model = Dvae(configs.dvae_tiny())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    images = pictures(16)
    start = float(loss_of(model, images)["recon"])
    for step in range(40):
        optimizer.zero_grad()
        loss_of(model, images, step=step)["loss"].backward()
        optimizer.step()
    assert float(loss_of(model, images, step=40)["recon"]) < start - 0.05


def test_the_layers_beside_the_codes_stay_in_full_precision():
    model = Dvae(configs.dvae_tiny())
    seen = {}
    for name in ("encoder.output", "decoder.input", "encoder.input"):
        model.get_submodule(name).register_forward_hook(lambda _m, _x, y, name=name: seen.update({name: y.dtype}))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = loss_of(model, pictures(2))
    assert seen == {
        "encoder.input": torch.bfloat16,
        "encoder.output": torch.float32,
        "decoder.input": torch.float32,
    }
    assert losses["loss"].dtype == torch.float32
    losses["loss"].backward()
    with torch.no_grad():
        full = loss_of(model, pictures(2))["loss"]
    assert float(losses["loss"].detach()) == pytest.approx(float(full), abs=0.02)


def test_pictures_without_a_whole_grid_are_refused():
    model = Dvae(configs.dvae_tiny())
    for call in (
        lambda: model.grids(16, 18),
        lambda: model.encode(torch.rand(1, 3, 18, 16)),
        lambda: model.grids(0, 4),
    ):
        with pytest.raises(ConfigError, match="multiples of 4"):
            call()
    with pytest.raises(ConfigError, match="multiples of 4"):
        model.facts(18)
    with pytest.raises(ValueError, match="image_size"):
        attrs.evolve(model.config, image_size=18)


def test_codes_that_do_not_fit_are_refused():
    model = Dvae(configs.dvae_tiny())
    codes = torch.zeros(1, 16, dtype=torch.int64)
    for grids in (((4, 4), (2, 2)), ((4, 5),), ()):
        with pytest.raises(PartMismatch, match="one grid"):
            model.decode(codes, grids)
    for bad in (-1, model.vocab_size):
        with pytest.raises(PartMismatch, match="codes"):
            model.decode(torch.full_like(codes, bad), ((4, 4),))
    with pytest.raises(PartMismatch, match="pictures"):
        model.loss(Batch(), Cond(), step=0, rng=Rng(0, range(1)))


@pytest.mark.parametrize(
    "field", [{"n_hid": 0}, {"bottleneck": 3}, {"vocab_size": 1}, {"epsilon": 0.5}, {"temperature_end": 0.0}]
)
def test_fields_out_of_range_are_named(field):
    with pytest.raises(ValueError, match=next(iter(field))):
        attrs.evolve(configs.dvae_tiny(), **field)

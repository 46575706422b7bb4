"""The gated PixelCNN: what sees what, cached sampling, conditions, guidance."""

import math

import pytest
import torch
from attrs import evolve

import zoo_vqvae.pixelcnn as module
from zoo.errors import ConfigError, PartMismatch
from zoo.interfaces import Batch, Cond, Prior
from zoo.nn.residual import residuals
from zoo.nn.sampling import guide
from zoo.rng import Rng
from zoo_vqvae import configs
from zoo_vqvae.pixelcnn import PixelCnn

torch.set_num_threads(1)
TINY = evolve(configs.pixelcnn_tiny(), vocab_size=11, text_vocab=20, text_length=6, classes=5, grids=((4, 5),))
VARIANTS = [
    TINY,
    evolve(TINY, reads="label", conditioning="bias", kernel=3),
    evolve(TINY, reads="nothing", kernel=7, grids=((5, 3),), layers=2),
    evolve(TINY, layers=1, grids=((1, 6),)),
]
IDS = ["ids-map", "label-bias", "nothing", "one-row"]


def build(config, randomise=True):
    torch.manual_seed(0)
    m = PixelCnn(config)
    if randomise:  # the head starts at zero, which would make everything agree
        for p in m.parameters():
            torch.nn.init.normal_(p, 0, 0.3)
    return m.eval()


def condition(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(6) < torch.randint(1, 7, (n, 1), generator=g)
    return Cond(ids=torch.randint(0, 20, (n, 6), generator=g), mask=mask, label=torch.arange(n) % 5)


def codes_of(m, n, seed=0):
    return torch.randint(0, m.vocab_size, (n, m.length), generator=torch.Generator().manual_seed(seed))


def recorded(m, monkeypatch, **settings):
    """Sample, and return the logits each draw saw [B,N,K] with the codes."""
    seen = []

    def spy(logits, *rest):
        seen.append(logits.clone())
        return draw(logits, *rest)

    draw = module.draw
    monkeypatch.setattr(module, "draw", spy)
    codes = m.sample(**settings)
    return torch.stack(seen, dim=1), codes


@pytest.mark.parametrize(("kernel", "layers"), [(3, 6), (5, 4), (7, 3)])
@pytest.mark.parametrize("conditioning", ["bias", "map"])
def test_no_blind_spot_and_no_glance_ahead(kernel, layers, conditioning):
    config = evolve(TINY, kernel=kernel, layers=layers, grids=((5, 5),), conditioning=conditioning)
    m = build(config).double()
    held = []
    m.embed.register_forward_hook(lambda *args: held.append(args[2].requires_grad_()))
    logits = m.logits(codes_of(m, 1), Cond())
    for i in range(25):
        (grad,) = torch.autograd.grad(logits[0, i].square().sum(), held[0], retain_graph=True)
        reach = grad[0].abs().sum(-1).flatten()
        assert (reach[:i] > 0).all(), f"{i} does not see {reach[:i].argmin()}"
        assert not reach[i:].any(), f"{i} sees {reach[i:].argmax() + i}"


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_causal_to_the_bit(config):
    m, cond = build(config), condition(3)
    codes = codes_of(m, 3)
    logits = m.logits(codes, cond)
    assert isinstance(m, Prior)
    assert m.causal
    assert logits.shape == (3, m.length, m.vocab_size)
    for i in range(m.length):
        changed = codes.clone()
        changed[:, i:] = (changed[:, i:] + 1) % m.vocab_size
        again = m.logits(changed, cond)
        assert torch.equal(again[:, : i + 1], logits[:, : i + 1])
        if (i + 1) % m.columns:  # the place to the right, which even one layer reaches
            assert not torch.equal(again[:, i + 1], logits[:, i + 1])


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
def test_leading_codes_alone(config):
    m, cond = build(config), condition(2)
    codes = codes_of(m, 2)
    whole = m.logits(codes, cond)
    for n in (1, 3, m.columns, m.length - 1):
        part = m.logits(codes[:, :n], cond)
        assert part.shape == (2, n, m.vocab_size)
        torch.testing.assert_close(part, whole[:, :n], atol=1e-4, rtol=1e-5)
    with pytest.raises(ConfigError, match="codes"):
        m.logits(torch.zeros(1, m.length + 1, dtype=torch.int64), condition(1))


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_sampling_equals_full_recomputation(config, guidance, monkeypatch):
    m, cond = build(config).double(), condition(3)
    seen, codes = recorded(m, monkeypatch, cond=cond, batch=3, guidance=guidance, rng=Rng(0, range(3)))
    full = m.logits(codes, cond)
    if guidance != 1:
        full = guide(torch.cat([full, m.logits(codes, Cond())]), guidance)
        torch.testing.assert_close(seen, full, atol=1e-4, rtol=1e-4)  # guidance is computed in fp32
    else:
        torch.testing.assert_close(seen, full, atol=1e-10, rtol=1e-10)
    assert codes.unique().numel() > 1


def test_cached_sampling_in_fp32(monkeypatch):
    m, cond = build(TINY), condition(3)
    seen, codes = recorded(m, monkeypatch, cond=cond, batch=3, rng=Rng(0, range(3)))
    torch.testing.assert_close(seen, m.logits(codes, cond), atol=1e-3, rtol=1e-4)


def test_samples_depend_on_their_own_row_only():
    m, cond = build(TINY), condition(6)
    rng = Rng(7, range(6))
    whole = m.sample(cond, batch=6, rng=rng, top_k=5, top_p=0.9, guidance=2.0)
    part = m.sample(cond[2:4], batch=2, rng=rng[2:4], top_k=5, top_p=0.9, guidance=2.0)
    assert torch.equal(part, whole[2:4])
    assert not torch.equal(whole, m.sample(cond, batch=6, rng=Rng(8, range(6)), top_k=5, top_p=0.9, guidance=2.0))
    assert whole.min() >= 0
    assert whole.max() < m.vocab_size
    assert whole.dtype == torch.int64


def test_temperature_zero_takes_the_best_code():
    m, cond = build(TINY), condition(3)
    codes = m.sample(cond, batch=3, temperature=0.0, rng=Rng(0, range(3)))
    assert torch.equal(m.logits(codes, cond).argmax(-1), codes)


def test_prefix_is_kept_and_continued():
    m, cond = build(TINY), condition(3)
    free = m.sample(cond, batch=3, rng=Rng(0, range(3)))
    prefix = torch.full((3, m.length), -1)
    prefix[0, :9], prefix[1, :4] = free[0, :9], (free[1, :4] + 1) % 11
    codes = m.sample(cond, batch=3, rng=Rng(0, range(3)), prefix=prefix)
    assert torch.equal(codes[0], free[0])
    assert torch.equal(codes[2], free[2])
    assert torch.equal(codes[1, :4], prefix[1, :4])
    assert not torch.equal(codes[1], free[1])
    assert torch.equal(m.sample(cond, batch=3, rng=Rng(1, range(3)), prefix=free), free)
    bad = torch.full((3, m.length), -1)
    bad[:, 3] = 1
    with pytest.raises(ConfigError, match="leading"):
        m.sample(cond, batch=3, rng=Rng(0, range(3)), prefix=bad)


def test_a_fresh_model_knows_nothing():
    m = build(TINY, randomise=False)
    losses = m.loss(Batch(codes=codes_of(m, 4)), condition(4), step=0, rng=Rng(0, range(4)))
    assert losses["loss"].item() == pytest.approx(math.log(11), rel=1e-6)
    assert m.log_prob(codes_of(m, 2)).tolist() == pytest.approx([-20 * math.log(11)] * 2)


def test_loss_is_the_mean_of_log_prob():
    m, codes, cond = build(TINY), codes_of(build(TINY), 4), condition(4)
    loss = m.loss(Batch(codes=codes), cond, step=0, rng=Rng(0, range(4)))["loss"]
    torch.testing.assert_close(loss, -m.log_prob(codes, cond).mean() / m.length)


@pytest.mark.parametrize("config", VARIANTS[:2], ids=IDS[:2])
def test_dropped_rows_get_the_null_condition(config):
    m, codes = build(config), codes_of(build(config), 3)
    cond = condition(3)
    null = m.logits(codes, Cond())
    some = m.logits(codes, evolve(cond, drop=torch.tensor([True, False, True])))
    assert torch.equal(some[[0, 2]], null[[0, 2]])
    assert torch.equal(some[1], m.logits(codes, cond)[1])
    assert not torch.equal(some[1], null[1])


def test_training_drops_by_its_own_stream():
    m, codes, cond = build(evolve(TINY, cond_drop=0.5)), codes_of(build(TINY), 8), condition(8)

    def loss(step, model):
        return model.loss(Batch(codes=codes), cond, step=step, rng=Rng(0, range(8), step=step))["loss"]

    assert torch.equal(loss(0, m), loss(1, m)), "nothing is dropped outside training"
    m.train()
    assert torch.equal(loss(0, m), loss(0, m))
    assert not torch.equal(loss(0, m), loss(1, m))
    drawn = Rng(0, range(8), step=0).fork("cond_drop").uniform() < 0.5
    by_hand = m.eval().loss(Batch(codes=codes), evolve(cond, drop=drawn), step=0, rng=Rng(0, range(8)))["loss"]
    assert torch.equal(loss(0, m.train()), by_hand)


def test_word_order_counts_and_padding_does_not():
    m, codes = build(TINY), codes_of(build(TINY), 1)
    ids = torch.tensor([[3, 7, 1, 0, 0, 0]])
    mask = torch.tensor([[True, True, True, False, False, False]])
    logits = m.logits(codes, Cond(ids=ids, mask=mask))
    other = torch.tensor([[3, 7, 1, 9, 9, 9]])
    torch.testing.assert_close(m.logits(codes, Cond(ids=other, mask=mask)), logits, atol=0, rtol=0)
    swapped = torch.tensor([[1, 7, 3, 0, 0, 0]])
    assert (m.logits(codes, Cond(ids=swapped, mask=mask)) - logits).abs().max() > 1e-2


def test_guidance_needs_a_null_condition():
    m = build(evolve(TINY, cond_drop=0.0))
    with pytest.raises(ConfigError, match="cond_drop"):
        m.sample(condition(1), batch=1, guidance=2.0, rng=Rng(0, range(1)))
    with pytest.raises(ConfigError, match="ids"):
        m.logits(codes_of(m, 1), Cond())
    with pytest.raises(ConfigError, match="temperature"):
        m.sample(condition(1), batch=1, temperature=-1.0, rng=Rng(0, range(1)))


def test_what_a_prior_must_be_told():
    with pytest.raises(PartMismatch, match="one grid of codes and this codebook has 10"):
        PixelCnn(evolve(TINY, grids=((8, 8),) * 10))
    for field in ("vocab_size", "grids", "text_vocab", "text_length"):
        with pytest.raises(ConfigError, match=field):
            PixelCnn(evolve(TINY, **{field: None}))
    with pytest.raises(ConfigError, match="classes"):
        PixelCnn(evolve(TINY, reads="label", classes=None))


def test_meta_residual_sums_and_every_parameter_is_used():
    with torch.device("meta"):
        assert all(p.is_meta for p in PixelCnn(TINY).parameters())
    assert len(list(residuals(build(TINY)))) == TINY.layers - 1
    for config in (*VARIANTS, evolve(TINY, cond_drop=0.0)):
        m = build(config)
        m.loss(Batch(codes=codes_of(m, 2)), condition(2), step=0, rng=Rng(0, range(2)))["loss"].backward()
        assert not [name for name, p in m.named_parameters() if p.grad is None]


def test_it_learns_what_a_caption_asks_for():
    """Two captions that differ by word order alone, each with its own picture."""
    config = evolve(TINY, grids=((3, 3),), cond_drop=0.1)
    m = build(config, randomise=False).train()
    ids = torch.tensor([[1, 2, 3, 0, 0, 0], [3, 2, 1, 0, 0, 0]])
    cond = Cond(ids=ids, mask=ids > 0)
    codes = codes_of(m, 2)
    optimiser = torch.optim.Adam(m.parameters(), lr=1e-2)
    for step in range(60):
        rng = Rng(0, range(16), step=step)
        batch = Batch(codes=codes.repeat(8, 1))
        loss = m.loss(batch, Cond(ids=ids.repeat(8, 1), mask=cond.mask.repeat(8, 1)), step=step, rng=rng)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    m.eval()
    assert torch.equal(m.sample(cond, batch=2, temperature=0.0, guidance=1.5, rng=Rng(0, range(2))), codes)

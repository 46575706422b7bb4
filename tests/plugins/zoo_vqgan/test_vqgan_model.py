"""VQGAN as a codebook: what its two quantisers do, training, precision, bad input, and a prior on its codes."""

from functools import partial

import attrs
import pytest
import torch
from torch.nn import functional as F

import zoo
from zoo.construct import construct
from zoo.data.shapes import open_shapes
from zoo.errors import ConfigError, PartMismatch
from zoo.interfaces import Batch, Codebook, Cond
from zoo.nn.residual import checkpoint_branches, residuals
from zoo.resolution import resolve_tree
from zoo.rng import Rng
from zoo.testing import behaviours
from zoo.testing.kit import Case
from zoo.testing.losses import loss_trains_with_scaled_branches
from zoo_vqgan import configs
from zoo_vqgan.configs import Gumbel, Net
from zoo_vqgan.configs import Vqgan as Config
from zoo_vqgan.model import Attention, Down, Up, Vqgan
from zoo_vqgan.quantisers import kl_to_uniform

KINDS = ("nearest", "gumbel")


def tiny(kind="nearest", **fields):
    torch.manual_seed(0)
    return Vqgan(attrs.evolve(configs.vqgan_tiny(), quantiser=kind, **fields))


def pictures(n, size=16, seed=0):
    """Flat random colours with a bar: learnable, and different from one another."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, 1, 1, generator=g).expand(n, 3, size, size).clone()
    for i in range(n):
        a = int(torch.randint(size - 4, (1,), generator=g))
        x[i, :, a : a + 4] = torch.rand(3, 1, 1, generator=g)
    return x


def loss_of(model, images, step=0, seed=0):
    return model.loss(Batch(images=images), Cond(), step=step, rng=Rng(seed, range(len(images)), step=step))


@pytest.mark.parametrize("check", behaviours("codebook"), ids=lambda check: check.__name__)
def test_the_kit_on_the_gumbel_quantiser(check):
    """The tiny card has nearest codes; the other quantiser passes the same checks."""
    node, config = resolve_tree("vqgan-tiny", ["quantiser=gumbel", "gumbel.temperature_end=0.5"])
    check(Case("gumbel", "codebook", config, lambda seed: construct(node, config, device="cpu", seed=seed)))


def test_a_code_that_is_another_in_fp16_is_no_fault_of_the_branches():
    """With these weights a vector lies as near to two codes, and fp16 takes the other."""
    node, config = resolve_tree("vqgan-tiny")
    case = Case("tie", "codebook", config, lambda seed: construct(node, config, device="cpu", seed=seed))
    case.fresh = partial(case.fresh, 9)
    loss_trains_with_scaled_branches(case)


@pytest.mark.parametrize(("kind", "name", "grid"), [
    ("nearest", "vqgan-f16-1024", (16, 16)), ("nearest", "vqgan-f16-16384", (16, 16)),
    ("gumbel", "vqgan-gumbel-f8-8192", (32, 32)), ("nearest", "vqgan", (8, 8)),
])  # fmt: skip
def test_sizes(kind, name, grid):
    config = zoo.resolve(name)
    with torch.device("meta"):
        model = Vqgan(config)
        images = torch.empty(1, 3, config.image_size, config.image_size)
        vectors, codes = model.vectors(images), model.encode(images)
    assert config.quantiser == kind
    assert config.facts(config.image_size).grids == model.grids(config.image_size, config.image_size) == (grid,)
    assert vectors.shape == (1, config.width, *grid)
    assert (codes.shape, codes.dtype) == ((1, grid[0] * grid[1]), torch.int64)
    attention = [m for m in model.modules() if isinstance(m, Attention)]
    each = 2 * config.net.blocks + 1  # blocks of a level, both sides
    assert len(attention) == 2 + each
    assert {m.norm.num_channels for m in attention} == {config.net.widths[-1]}
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.GroupNorm)} == {1e-6}
    assert len(list(residuals(model))) == 6 + each * len(config.net.widths) + each


def test_the_laptop_size_has_under_a_million_parameters():
    assert zoo.info("vqgan")["params"] < 1_000_000


def test_attention_placement_does_not_depend_on_the_picture():
    a, b = (Vqgan(attrs.evolve(configs.vqgan_tiny(), image_size=size)) for size in (16, 64))
    assert a.state_dict().keys() == b.state_dict().keys()


@pytest.mark.parametrize("kind", KINDS)
def test_is_a_codebook_of_any_whole_grid(kind):
    model = tiny(kind)
    assert isinstance(model, Codebook)
    for height, width in ((16, 16), (8, 24)):
        images = torch.rand(3, 3, height, width)
        codes = model.encode(images)
        assert codes.dtype == torch.int64
        assert codes.shape == (3, height * width // 16)
        out = model.decode(codes, model.grids(height, width))
        assert out.shape == images.shape
        assert 0 <= float(out.min()) <= float(out.max()) <= 1


def test_down_reads_the_right_and_lower_edge_only():
    down = Down(1)
    with torch.no_grad():
        down.weight.copy_(torch.arange(9.0).view(1, 1, 3, 3))
        down.bias.zero_()
    x = torch.rand(1, 1, 4, 4)
    padded = F.pad(x, (0, 1, 0, 1))
    expected = sum(k * padded[..., k // 3 : k // 3 + 3 : 2, k % 3 : k % 3 + 3 : 2] for k in range(9))
    assert torch.allclose(down(x), expected)
    assert Up(1)(x).shape == (1, 1, 8, 8)


def test_attention_is_one_head_over_all_places():
    torch.manual_seed(0)
    branch, x = Attention(8, 4).double(), torch.randn(2, 8, 3, 5, dtype=torch.float64)
    q, k, v = branch.qkv(branch.norm(x).flatten(2).transpose(1, 2)).chunk(3, dim=-1)
    y = branch.out((q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v).transpose(1, 2).view_as(x)
    assert torch.allclose(branch(x), y)


def test_loss_is_l1_in_minus_one_to_one_and_both_terms():
    model = tiny(nearest=configs.Nearest(codebook_weight=0.25, commitment_weight=1.0)).double()
    images = pictures(4).double()
    losses = loss_of(model, images)
    with torch.no_grad():
        z = model.vectors(images)
        e = model.quantiser.decode(model.quantiser.encode(z))
        l1 = (model.paint(e) - (2 * images - 1)).abs().mean()
        assert float(losses["reconstruction"]) == pytest.approx(float(l1))
        assert float(losses["loss"]) == pytest.approx(float(l1 + 1.25 * (z - e).square().mean()))
        out = model.decode(model.encode(images), ((4, 4),))
        assert float(losses["rmse"]) == pytest.approx(float((out - images).square().mean().sqrt()))


def test_weights_of_the_two_terms_reach_the_right_side():
    """The codes are moved by the codebook term alone, the encoder by the commitment term."""
    images = pictures(2).double()

    def grads(**own):
        model = tiny(nearest=configs.Nearest(**own)).double()
        q = model.quantiser.train_codes(model.vectors(images), step=0, rng=Rng(0, range(2)))
        q.loss.mean().backward()
        return model.quantiser.codes.weight.grad, model.before.weight.grad

    codes, encoder = grads(codebook_weight=0.25, commitment_weight=1.0)
    codes4, encoder4 = grads(codebook_weight=1.0, commitment_weight=1.0)
    assert torch.allclose(codes4, 4 * codes)
    assert torch.allclose(encoder4, encoder)
    assert torch.allclose(grads(codebook_weight=0.25, commitment_weight=3.0)[1], 3 * encoder)
    paper = configs.vqgan_f16_1024().nearest
    assert (paper.codebook_weight, paper.commitment_weight, paper.revive_below) == (0.25, 1.0, 0.0)


def test_gumbel_draws_from_the_posterior():
    model = tiny("gumbel", gumbel=Gumbel(temperature_end=0.7, temperature_updates=0), vocab_size=3)
    z = torch.randn(1, 8, 1, 1).expand(4000, 8, 1, 1)
    p = model.quantiser.logits(z)[0, 0, 0].softmax(-1)
    q = model.quantiser.train_codes(z, step=0, rng=Rng(1, range(4000)))
    share = torch.bincount(q.codes.flatten(), minlength=3) / 4000
    assert torch.allclose(share, p, atol=0.03)
    assert torch.equal(q.z, model.quantiser.decode(q.codes))  # hard forward
    assert model.quantiser.encode(z[:1]).item() == int(p.argmax())


def test_gumbel_gradient_is_that_of_the_soft_mixture():
    model = tiny("gumbel").double()
    z, out = torch.randn(2, 8, 2, 2, dtype=torch.float64), torch.randn(2, 8, 2, 2, dtype=torch.float64)
    rng = Rng(3, range(2))
    (model.quantiser.train_codes(z, step=30, rng=rng).z * out).sum().backward()
    got = model.quantiser.proj.weight.grad.clone()
    model.zero_grad()
    noise = Rng(3, range(2)).gumbel(2, 2, 32).double()
    soft = ((model.quantiser.logits(z) + noise) / model.config.gumbel.temperature_at(30)).softmax(-1)
    ((soft @ model.quantiser.embed.weight.detach()).movedim(-1, 1) * out).sum().backward()
    assert torch.allclose(got, model.quantiser.proj.weight.grad, rtol=1e-9)


def test_kl_and_temperature():
    assert float(kl_to_uniform(torch.full((2, 32), 1.7)).abs().max()) < 1e-6
    assert float(kl_to_uniform(F.one_hot(torch.tensor(1), 32) * 1e4)) == pytest.approx(3.4657, abs=1e-4)
    gumbel = configs.vqgan_gumbel_f8_8192().gumbel
    assert gumbel.temperature_at(0) == pytest.approx(0.9)
    assert gumbel.temperature_at(500_000) == pytest.approx(0.45, abs=1e-5)
    assert gumbel.temperature_at(2_000_000) == 1e-6
    losses = loss_of(tiny("gumbel"), pictures(2), step=9)
    assert float(losses["temperature"]) == pytest.approx(tiny("gumbel").config.gumbel.temperature_at(9))
    assert 0 < float(losses["kl"]) < 3.47


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss_and_uses_codes(kind):
    model = tiny(kind, gumbel=Gumbel(kl_weight=1e-2, temperature_end=0.1, temperature_updates=100))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=(0.9, 0.99))
    images = pictures(16)
    start = float(loss_of(model, images)["reconstruction"])
    for step in range(100):
        optimizer.zero_grad()
        loss_of(model, images, step=step)["loss"].backward()
        optimizer.step()
    assert float(loss_of(model, images, step=100)["reconstruction"]) < 0.7 * start
    assert len(model.eval().encode(images).unique()) >= 6


@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_branches_change_nothing(kind):
    model = tiny(kind, nearest=configs.Nearest()).double().train()
    images = pictures(2).double()
    loss_of(model, images)["loss"].backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    checkpoint_branches(model)
    loss_of(model, images)["loss"].backward()
    assert all(torch.equal(a, p.grad) for a, p in zip(plain, model.parameters(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_codes_are_chosen_in_full_precision_under_autocast(kind):
    model = tiny(kind).eval()
    z = torch.randn(2, 8, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = model.quantiser.encode(z)
        assert model.quantiser.train_codes(z, step=0, rng=Rng(0, range(2))).z.dtype == torch.float32
    assert torch.equal(codes, model.quantiser.encode(z))


def test_dead_codes_are_revived_in_small_sizes_only():
    assert tiny().whole_batch
    assert tiny().config.cost().whole_batch
    for kind in KINDS:
        paper = tiny(kind, nearest=configs.Nearest())
        assert not paper.whole_batch
        assert not paper.config.cost().whole_batch


def test_dalle_speaks_its_codes():
    g = zoo.build("dalle-tiny", overrides=["codebook=vqgan-tiny"], device="cpu")
    assert (g.parts["prior"].vocab_size, g.parts["prior"].grids) == (32, ((8, 8),))
    g.parts["tokenizer"].fit(open_shapes("", split="train", size=32), seed=0)
    out = g.generate(["a red circle"], seed=0, allow_untrained=True)
    assert out.shape == (1, 3, 32, 32)
    config = zoo.resolve("dalle", ["codebook=vqgan"])
    assert (config.prior.vocab_size, config.prior.grids) == (512, ((8, 8),))
    big = zoo.resolve("dalle-12b", ["codebook=vqgan-gumbel-f8-8192"])
    assert (big.prior.vocab_size, big.prior.grids) == (8192, ((32, 32),))


def test_pictures_and_codes_that_do_not_fit_are_refused():
    model = tiny()
    for call in (lambda: model.grids(16, 18), lambda: model.encode(torch.rand(1, 3, 18, 16)), lambda: model.facts(2)):
        with pytest.raises(ConfigError, match="multiples of 4"):
            call()
    codes = torch.zeros(1, 16, dtype=torch.int64)
    for grids in (((4, 4), (2, 2)), ((4, 5),), ()):
        with pytest.raises(PartMismatch, match="one grid"):
            model.decode(codes, grids)
    for bad in (-1, model.vocab_size):
        with pytest.raises(PartMismatch, match="codes"):
            model.decode(torch.full_like(codes, bad), ((4, 4),))
    with pytest.raises(PartMismatch, match="pictures"):
        model.loss(Batch(), Cond(), step=0, rng=Rng(0, range(1)))


@pytest.mark.parametrize("make", [
    lambda: Net(groups=48), lambda: Net(groups=0), lambda: Net(attention=(3,)), lambda: Net(attention=(32,)),
    lambda: Net(multipliers=()), lambda: Net(multipliers=(1, 0)), lambda: Config(image_size=40),
    lambda: Config(vocab_size=1), lambda: configs.Nearest(codebook_weight=0.0), lambda: Gumbel(temperature_end=0.0),
])  # fmt: skip
def test_fields_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match=r"groups|attention|multipliers|image_size|vocab_size|codebook_weight|temp"):
        make()

"""DiffuSSM's block against the paper's equations, and what its sizes must be."""

import pytest
import torch
from attrs import evolve
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.errors import ConfigError, PartMismatch
from zoo.interfaces import Batch, Cond
from zoo.nn.residual import residuals
from zoo.rng import Rng
from zoo.testing.kit import stir
from zoo_diffussm import model, variants
from zoo_diffussm.configs import DiffuSsm, DiT
from zoo_diffussm.ssm import SsmBlock

WHERE = {"channels": 3, "size": (4, 4), "bounded": False, "classes": 5}
SMALL = DiffuSsm(width=8, depth=2, state=4, **WHERE)


def build(config, seed=0):
    """Return the denoiser of a config, in which nothing is zero by its initialisation, in double precision."""
    torch.manual_seed(seed)
    net = model.dit(config) if isinstance(config, DiT) else model.diffussm(config)
    stir(net, seed)
    return net.double()


def asked(config, rows=2):
    source = torch.Generator().manual_seed(1)
    z = torch.randn(rows, config.channels, *config.size, dtype=torch.float64, generator=source)
    return z, torch.randn(rows, dtype=torch.float64, generator=source), Cond(label=torch.arange(rows))


def by_the_equations(block, x, told, m):
    """Return O of [1] section 4, one position after another, the SSMs run as recurrences."""
    shift, scale = (block.modulation.weight @ told + block.modulation.bias).chunk(2)
    i = F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift  # [J,D]
    wide = [F.gelu(w) for w in (block.up.weight @ F.gelu(block.shared(i)).T + block.up.bias[:, None]).T]
    u = torch.stack([wide[j].chunk(m)[k] for j in range(len(x)) for k in range(m)])  # [L,D], l = jM + k
    y = torch.cat([recurrence(block.ssm.causal, u), recurrence(block.ssm.reverse, u.flip(0)).flip(0)], 1)
    short = torch.stack([torch.cat([F.gelu(block.down[k](y[j * m + k])) for k in range(m)]) for j in range(len(x))])
    return block.out(F.gelu(block.mix(short)) * F.gelu(block.gate(i)))


def recurrence(ssm, u):
    state, found = torch.zeros(1, *ssm.A_imag.shape, dtype=torch.complex128), []
    for row in u:
        y, state = ssm.step(row[None], state)
        found.append(y[0])
    return torch.stack(found)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_block_is_the_equations(m):
    torch.manual_seed(m)
    block = SsmBlock(evolve(SMALL, shortening=m))
    stir(block, m)
    block.double()
    x, told = torch.randn(2, 16 // m, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    found = block(x, told, None)
    for row in range(2):
        assert torch.allclose(found[row], by_the_equations(block, x[row], told[row], m), atol=1e-12)


@pytest.mark.parametrize("m", [1, 2, 4])
def test_matrices_and_products(m):
    """(1 + M + 4 + 2 + 4 + 2) D² weights; 13 (L/M) D² + L D² products of them, in which L counts once."""
    config = evolve(SMALL, shortening=m)
    d, length = config.width, 16
    block = SsmBlock(config)
    dense = {n: p for n, p in block.named_parameters() if p.ndim == 2 and not n.startswith(("ssm", "modulation"))}
    assert sum(p.numel() for p in dense.values()) == (13 + m) * d * d
    with FlopCounterMode(display=False) as counter:
        block(torch.zeros(1, length // m, d), torch.zeros(1, d), None)
    counted = counter.get_flop_counts()["Global"]
    kernels = counted.pop(torch.ops.aten.bmm)  # two directions, 4 times 4 powers of N numbers each
    assert kernels == 2 * 2 * d * length * config.state
    modulation = 2 * d * 2 * d
    assert sum(counted.values()) - modulation == 2 * (13 * length // m + length) * d * d


def test_sizes_of_the_paper():
    xl = variants.diffussm_xl_256()
    assert abs(xl.cost().params / 673e6 - 1) < 0.01
    assert xl.size[0] * xl.size[1] // xl.shortening == 512
    assert variants.diffussm_xl_512().size[0] ** 2 // 2 == 2048


def test_products_of_the_paper():
    """13 (L/M) D² + L D² a block; all else is within 5 %, and the whole grows as the length."""
    xl = variants.diffussm_xl_256()
    for config, length in ((xl, 1024), (variants.diffussm_xl_512(), 4096)):
        formula = config.depth * (13 * length // 2 + length) * config.width**2
        assert 1 < config.cost().flops / 2 / formula < 1.05
    assert variants.diffussm_xl_512().cost().flops / xl.cost().flops == pytest.approx(4, rel=0.01)


def test_all_positions_of_a_place_matter():
    net = build(SMALL)
    z, logsnr, cond = asked(SMALL)
    swapped = z.clone()
    swapped[:, :, 0, :2] = z[:, :, 0, :2].flip(-1)
    assert (
        float((net.predict(swapped, logsnr, cond).mean - net.predict(z, logsnr, cond).mean).detach().abs().max()) > 1e-6
    )


def moved(config, place):
    """Return which cells of the prediction change when one cell of z does, bool [H,W]."""
    net = build(config)
    z, logsnr, cond = asked(config, 1)
    other = z.clone()
    other[:, :, place // 4, place % 4] += 1
    with torch.no_grad():
        found = net.predict(other, logsnr, cond).mean - net.predict(z, logsnr, cond).mean
    return found[0].abs().amax(0) > 1e-12


def test_both_directions_are_read():
    assert moved(SMALL, 8).all()
    forward = moved(evolve(SMALL, directions="forward"), 8).flatten()
    assert not forward[:8].any()
    assert forward[8:].all()


def test_skips_and_prefix_change_the_prediction():
    skips = build(evolve(SMALL, depth=3, skips="long"))
    assert [tuple(layer.weight.shape) for layer in skips.stack.merge] == [(8, 16)]
    z, logsnr, cond = asked(SMALL)
    one = skips.predict(z, logsnr, cond).mean
    with torch.no_grad():
        skips.stack.merge[0].weight[:, 8:] = 0  # no longer reads what the first block made
    assert not torch.allclose(one, skips.predict(z, logsnr, cond).mean)


@pytest.mark.parametrize("family", ["ssm", "dit"])
def test_a_caption_is_the_same_beside_a_longer_one(family):
    """Its padding and its neighbours' length change nothing, in front of the picture either."""
    more = {"reads": "text", "prefix": True, "text_width": 8, "text_length": 6}
    config = evolve(SMALL, **more) if family == "ssm" else DiT(width=8, depth=2, heads=2, **WHERE, **more)
    net = build(config)
    z, logsnr, _ = asked(config)
    text = torch.randn(2, 6, 8, dtype=torch.float64)
    mask = torch.arange(6) < torch.tensor([[2], [5]])
    with torch.no_grad():
        both = net.predict(z, logsnr, Cond(text=text, text_mask=mask)).mean
        alone = net.predict(z[:1], logsnr[:1], Cond(text=text[:1, :2], text_mask=mask[:1, :2])).mean
        swapped = net.predict(z[:1], logsnr[:1], Cond(text=text[:1, :2].flip(1))).mean
    assert torch.allclose(both[:1], alone, atol=1e-12)
    assert family == "dit" or not torch.allclose(alone, swapped, atol=1e-6)


@pytest.mark.parametrize("prefix", [False, True])
def test_captions(prefix):
    config = evolve(SMALL, reads="text", prefix=prefix, text_width=8, text_length=3)
    net = build(config)
    z, logsnr, _ = asked(config)
    text = torch.randn(2, 3, 8, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    with torch.no_grad():
        one = net.predict(z, logsnr, Cond(text=text, text_mask=mask)).mean
        padded = net.predict(z, logsnr, Cond(text=text * 1.0 + (~mask[..., None]) * 7.0, text_mask=mask)).mean
        other = net.predict(z, logsnr, Cond(text=-text, text_mask=mask)).mean
    assert one.shape == z.shape
    assert torch.allclose(one, padded, atol=1e-12)  # padding is not read
    assert not torch.allclose(one, other)


def test_patches_are_positions():
    config = evolve(SMALL, patch=2, shortening=1)
    net = build(config)
    assert net.input(torch.zeros(1, 3, 4, 4, dtype=torch.float64)).shape == (1, 4, 8)
    z, logsnr, cond = asked(config)
    assert net.predict(z, logsnr, cond).mean.shape == z.shape


def test_input_and_head_agree_on_places():
    """A head that copies what the input read gives the picture back."""
    for config in (evolve(SMALL, patch=2), SMALL, evolve(SMALL, shortening=1)):
        net = build(evolve(config, variance="fixed", width=config.channels * config.patch**2 * config.shortening * 2))
        z = asked(config)[0]
        heard = []
        net.input.project.register_forward_pre_hook(lambda module, arguments, heard=heard: heard.append(arguments[0]))
        net.input(z)
        values = heard[0].unflatten(2, (config.shortening, config.channels, config.patch, config.patch))
        net.head.project.register_forward_hook(
            lambda module, arguments, made, values=values: values.movedim(3, 5).flatten(2)
        )
        back = net.head(
            torch.zeros(2, values.shape[1], net.config.width, dtype=torch.float64), net.time(torch.zeros(2))
        )
        assert torch.equal(back, z)


def test_a_fresh_one_predicts_zero_and_every_block_begins_as_identity():
    net = model.diffussm(SMALL)
    z, logsnr, cond = (x.float() if torch.is_tensor(x) else x for x in asked(SMALL))
    assert not net.predict(z, logsnr, cond).mean.any()
    x, told = torch.randn(2, 8, 8), torch.randn(2, 8)
    assert len(dict(residuals(net))) == SMALL.depth
    for block in net.stack.blocks:
        assert torch.equal(block(x, told, None), x)


def test_the_variance_learns_from_its_own_term_alone():
    net = build(SMALL)
    z, _, cond = asked(SMALL, 3)
    net.head.project.weight.grad = None
    terms = net.loss(Batch(z=z), cond, step=0, rng=Rng(0, range(3)))
    terms["loss"].backward()
    both = net.head.project.bias.grad.unflatten(0, (2, -1))  # a place has two positions of 2C values
    fixed = build(evolve(SMALL, variance="fixed"))
    with torch.no_grad():
        for name, p in fixed.named_parameters():
            q = dict(net.named_parameters())[name]
            p.copy_(q if q.shape == p.shape else q.unflatten(0, (2, 2, 3))[:, 0].flatten(0, 1))
    fixed.loss(Batch(z=z), cond, step=0, rng=Rng(0, range(3)))["loss"].backward()
    assert torch.allclose(both[:, :3], fixed.head.project.bias.grad.unflatten(0, (2, -1)), atol=1e-12)
    assert both[:, 3:].abs().min() > 0


def test_published_recipes_mirror_and_centre():
    """DiT's code crops the centre and mirrors half of the pictures."""
    assert {variants.diffussm_xl_256().train.transform, variants.dit_xl_2_512().train.transform} == {"flip"}


def test_ssm_parameters_are_a_group_of_their_own():
    net = model.diffussm(SMALL)
    recipe = variants.diffussm_xl_256().train
    groups = net.param_groups(evolve(recipe, lr=5e-3, weight_decay=0.1))
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters() if p.requires_grad)
    ssm = next(group for group in groups if group.get("lr") == 1e-3)
    assert ssm["weight_decay"] == 0
    names = {id(p): n for n, p in net.named_parameters()}
    assert {names[id(p)].split(".")[-1] for p in ssm["params"]} == {"log_dt", "log_A_real", "A_imag", "B"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": (5, 5)}, "'shortening' must divide the 25 positions of 5x5 cells: 2"),
        ({"patch": 3}, "'patch' must divide the latent's sides 4x4: 3"),
        ({"shortening": 3}, "'shortening' must divide"),
        ({"state": 5}, "'state' must be even"),
        ({"width": 6, "positions": "sincos"}, "'width' must be a multiple of 4"),
    ],
)
def test_sizes_that_do_not_fit(change, said):
    with pytest.raises(ValueError, match=said):
        evolve(SMALL, **change)


def test_what_the_condition_must_be():
    net = build(SMALL)
    z, logsnr, _ = asked(SMALL)
    with pytest.raises(PartMismatch, match="no `label`"):
        net.predict(z, logsnr, Cond())
    with pytest.raises(PartMismatch, match="labels run from 0 to 4, got 5"):
        net.predict(z, logsnr, Cond(label=torch.tensor([0, 5])))
    with pytest.raises(PartMismatch, match="built for 3 channels"):
        net.predict(z[:, :, :2], logsnr, Cond(label=torch.tensor([0, 1])))
    with pytest.raises(ConfigError, match="still open"):
        evolve(SMALL, classes=None).cost()


def test_enlarging():
    """The picture below and its noise level are read beside z; they must be there."""
    config = evolve(SMALL, low=2)
    net = build(config)
    z, logsnr, cond = asked(config)
    with pytest.raises(PartMismatch, match="no `low`"):
        net.predict(z, logsnr, cond)
    one, other, louder = (
        net.predict(z, logsnr, evolve(cond, low=low, low_level=level)).mean
        for low, level in ((z, logsnr), (-z, logsnr), (z, logsnr - 2))
    )
    assert float((one - other).detach().abs().max()) > 1e-6
    assert float((one - louder).detach().abs().max()) > 1e-6


def test_any_stage_of_a_cascade():
    system = zoo.build("imagen-tiny", overrides=["base=dit-denoiser-tiny", "sr32=diffussm-denoiser-tiny"])
    assert [system.parts[role].config.low for role in ("base", "sr32")] == [None, 16]
    z, cond = torch.randn(1, 3, 32, 32), Cond(text=torch.randn(1, 4, 24), low_level=torch.zeros(1))
    assert system.parts["sr32"].predict(z, torch.zeros(1), evolve(cond, low=z)).mean.shape == z.shape

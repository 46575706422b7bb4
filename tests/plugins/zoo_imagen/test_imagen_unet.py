"""The base U-Net and what conditions every denoiser. ../../../plugins/zoo_imagen/README.md has the paper."""

import pytest
import torch
from attrs import evolve
from imagen_small import SMALL, asked, build
from torch.nn import functional as F

from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond
from zoo.nn.conditioning import sinusoid
from zoo.nn.residual import residuals
from zoo.rng import Rng
from zoo_imagen import variants
from zoo_imagen.condition import TextKeys
from zoo_imagen.layers import Attention, Conv, Down
from zoo_imagen.model import unet


def test_sizes_are_the_published_ones():
    """Checks 2 and 3 of the reference: 6 outputs, text read at 512, 2048 and 4096 channels."""
    paper = evolve(variants.imagen_base_64(), variance="learned")
    for channels, params in ((512, 2_193_653_766), (2048, 2_305_396_230), (4096, 2_437_604_870)):
        with torch.device("meta"):
            model = unet(evolve(paper, text_channels=channels))
        assert sum(p.numel() for p in model.parameters()) == params
    with torch.device("meta"):
        deepfloyd = unet(variants.if_i_xl())
    assert sum(p.numel() for p in deepfloyd.parameters()) == 4_304_695_110


def test_attention_is_at_32_16_and_8_px():
    """Check 4: the levels' sides and where attention is, of 64 px; the network itself, with few channels."""
    config = evolve(variants.imagen_base_64(), width=16, head_width=16, groups=8, text_width=8, text_channels=None)
    model = unet(config)
    seen = []
    for module in model.modules():
        if isinstance(module, Attention):
            module.register_forward_hook(lambda m, x, y: seen.append((y.shape[-1], y.shape[1])))
    z, cond = torch.zeros(1, 3, 64, 64), Cond(text=torch.zeros(1, 2, 8))
    with torch.no_grad():
        model.predict(z, torch.zeros(1), cond)
    down, middle, up = seen[:9], seen[9:10], seen[10:]
    assert down == [(side, width) for side, width in ((32, 32), (16, 48), (8, 64)) for _ in range(3)]
    assert middle == [(8, 64)]
    assert up == [(side, width) for side, width in ((8, 64), (16, 48), (32, 32)) for _ in range(4)]


def test_it_predicts_zero_before_training():
    """Output convolution, every block's last one and every attention's output begin as zero."""
    model = unet(SMALL["base"])
    z, logsnr, cond = asked(SMALL["base"], torch.float32)
    with torch.no_grad():
        assert not model.predict(z, logsnr, cond).mean.any()
    assert not model.net.out.weight.any()
    ends = [block.branch.out for _, block in residuals(model)]
    assert len(ends) > 8
    assert not any(end.weight.any() or end.bias.any() for end in ends)


@pytest.mark.parametrize("name", SMALL)
def test_a_condition_is_worked_out_once(name):
    """`conditioned` gives what `predict` gives, and a step then makes no key of a caption and pools none."""
    config = SMALL[name]
    model = build(config)
    z, logsnr, cond = asked(config)
    calls = []
    for part in (model.pool, *(m for m in model.modules() if isinstance(m, TextKeys))):
        part.register_forward_hook(lambda m, x, y: calls.append(m))
    with torch.no_grad():
        told = model.conditioned(cond)
        once = len(calls)
        assert once == 1 + sum(isinstance(m, TextKeys) for m in model.modules()) > 1
        for level in (logsnr, logsnr + 1):
            assert torch.equal(told(z, level).mean, model.predict(z, level, cond).mean)
    assert len(calls) == 3 * once


@pytest.mark.parametrize("name", SMALL)
def test_padding_is_never_read(name):
    model = build(SMALL[name])
    z, logsnr, cond = asked(SMALL[name])
    other = torch.where(cond.text_mask[..., None], cond.text, torch.randn_like(cond.text))
    shorter = evolve(cond, text=cond.text[:, :3], text_mask=cond.text_mask[:, :3])
    with torch.no_grad():
        own = model.predict(z, logsnr, cond).mean
        padded = model.predict(z, logsnr, evolve(cond, text=other)).mean
        cut = model.predict(z, logsnr, shorter).mean
    assert torch.allclose(own, padded, atol=1e-12)
    assert torch.allclose(own, cut, atol=1e-12)


@pytest.mark.parametrize("name", SMALL)
def test_the_null_condition_is_one_token_of_zero(name):
    """Whatever the caption and its length; an empty caption is the same."""
    model = build(SMALL[name])
    z, logsnr, cond = asked(SMALL[name])
    everyone = torch.ones(len(z), dtype=torch.bool)
    zero = evolve(cond, text=torch.zeros(2, 1, 12, dtype=torch.float64), text_mask=torch.ones(2, 1, dtype=torch.bool))
    empty = evolve(cond, text=torch.zeros_like(cond.text), text_mask=torch.zeros_like(cond.text_mask))
    dropped = evolve(cond, drop=everyone)
    shorter = evolve(dropped, text=cond.text[:, :2], text_mask=cond.text_mask[:, :2])
    with torch.no_grad():
        null = model.predict(z, logsnr, dropped).mean
        for same in (zero, empty, shorter, evolve(dropped, text_mask=None)):
            assert torch.allclose(model.predict(z, logsnr, same).mean, null, atol=1e-12)
        assert not torch.allclose(model.predict(z, logsnr, cond).mean, null, atol=1e-3)


def test_a_predicted_variance_is_bounded_and_learns_from_outside():
    """The output's bias puts all of it at 3, where a clamp has no gradient."""
    model = build(evolve(SMALL["base"], variance="learned"))
    z, logsnr, cond = asked(SMALL["base"])
    with torch.no_grad():
        model.net.out.weight.zero_()
        model.net.out.bias[3:].fill_(3)
    variance = model.predict(z, logsnr, cond).variance
    assert torch.equal(variance, torch.ones_like(z))
    (grad,) = torch.autograd.grad(variance.sum(), model.net.out.bias)
    assert torch.equal(grad, torch.tensor([0.0, 0, 0, 128, 128, 128], dtype=torch.float64))


def test_group_norm_of_text_computes_in_fp32(monkeypatch):
    """Under autocast the text comes in half precision; the norm and its gains do not."""
    layer, seen, plain = TextKeys(64, 8, "group"), [], F.group_norm
    text = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0)).bfloat16()

    def group_norm(x, groups, weight, bias, eps):
        y = plain(x, groups, weight, bias, eps)
        seen.extend((x.dtype, weight.dtype, bias.dtype, y.dtype))
        return y

    monkeypatch.setattr(F, "group_norm", group_norm)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(text)
    assert seen == [torch.float32] * 4
    assert found.dtype == torch.bfloat16
    assert layer.bfloat16()(text).dtype == torch.bfloat16
    assert seen == [torch.float32] * 8
    assert layer.double()(text.double()).dtype == torch.float64


def test_a_tenth_of_the_captions_is_dropped_in_training(monkeypatch):
    model = build(SMALL["base"]).float()
    dropped = []
    monkeypatch.setattr(model, "_predict", lambda z, logsnr, fixed: torch.nn.Module())
    fixed = model._fixed
    monkeypatch.setattr(model, "_fixed", lambda cond: dropped.append(cond.drop) or fixed(cond))
    cond = Cond(text=torch.zeros(4000, 1, 12), text_mask=torch.ones(4000, 1, dtype=torch.bool))
    with pytest.raises(AttributeError):  # the prediction is none
        model.loss(Batch(z=torch.zeros(4000, 3, 2, 2)), cond, step=0, rng=Rng(0, range(4000)))
    assert 0.085 < float(dropped[0].float().mean()) < 0.115


def test_labels_and_nothing():
    """Other conditions than captions: a label moves the prediction, the null label is one more."""
    labelled = build(evolve(SMALL["base"], reads="label", classes=3, text_width=None, text_length=None))
    z, logsnr, _ = asked(SMALL["base"])
    with torch.no_grad():
        one, two = (labelled.predict(z, logsnr, Cond(label=torch.tensor([i, i]))).mean for i in (0, 1))
        null = labelled.predict(z, logsnr, Cond(label=torch.tensor([0, 0]), drop=torch.tensor([True, False]))).mean
    assert float((one - two).abs().max()) > 1e-6
    assert torch.equal(null[1], one[1])
    assert not torch.equal(null[0], one[0])
    assert labelled.label.weight.shape == (4, 32)
    blind = build(evolve(SMALL["base"], reads="nothing"))
    with torch.no_grad():
        assert torch.equal(
            blind.predict(z, logsnr, Cond()).mean, blind.predict(z, logsnr, asked(SMALL["base"])[2]).mean
        )


def test_what_does_not_fit_is_said():
    model = build(SMALL["base"])
    z, logsnr, cond = asked(SMALL["base"])
    with pytest.raises(PartMismatch, match="7x8, and this denoiser's levels need multiples of 2"):
        model.predict(z[:, :, :7], logsnr, cond)
    with pytest.raises(PartMismatch, match="no `text`"):
        model.predict(z, logsnr, Cond())
    with pytest.raises(PartMismatch, match="this batch has none"):
        model.loss(Batch(), cond, step=0, rng=Rng(0, range(2)))
    enlarging = build(SMALL["self"])
    z, logsnr, cond = asked(SMALL["self"])
    with pytest.raises(PartMismatch, match="no `low`"):
        enlarging.predict(z, logsnr, evolve(cond, low=None))
    with pytest.raises(PartMismatch, match="enlarge it before"):
        enlarging.predict(z, logsnr, evolve(cond, low=cond.low[:, :, :8, :8]))
    for field, wrong in (("groups", 5), ("head_width", 5), ("pool_heads", 5), ("attention", (4,))):
        with pytest.raises(ValueError, match=f"'{field}' must"):
            evolve(SMALL["base"], **{field: wrong})
    with pytest.raises(ValueError, match="needs text of a multiple of 32 channels, not 12"):
        evolve(SMALL["base"], text_norm="group")


def test_layers_are_torchs():
    """The kernel's order of axes changes nothing but how it lies in memory; halving is averaging."""
    conv = Conv(4, 6, stride=2)
    x = torch.randn(2, 4, 8, 8)
    usual = torch.nn.Conv2d(4, 6, 3, stride=2, padding=1)
    usual.load_state_dict({"weight": conv.weight.permute(0, 3, 1, 2), "bias": conv.bias})
    assert torch.allclose(conv(x), usual(x), atol=1e-6)
    assert 0.5 < float((conv.weight.std() / usual.weight.std()).detach()) < 2
    assert torch.allclose(Down()(x), F.avg_pool2d(x, 2), atol=1e-6)


def test_waves_count_thousandths():
    """Cosines, then sines, the fastest first; the slowest is nearly 10 000 times slower."""
    waves = sinusoid(torch.tensor([0.0, 500.0], dtype=torch.float64), 6)
    assert torch.equal(waves[0], torch.tensor([1.0, 1, 1, 0, 0, 0], dtype=torch.float64))
    angles = 500 * 10_000 ** -(torch.arange(3, dtype=torch.float64) / 3)
    assert torch.allclose(waves[1], torch.cat((angles.cos(), angles.sin())), atol=1e-3)

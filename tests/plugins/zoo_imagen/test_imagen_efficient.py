"""Efficient U-Net: which of the paper's differences it has, and what a stage reads of the one below."""

import pytest
import torch
from attrs import evolve
from imagen_small import SMALL, asked, build

from zoo_imagen import variants
from zoo_imagen.efficient import SKIP_SCALE, Level
from zoo_imagen.layers import Attention, Conv, Pointwise
from zoo_imagen.model import efficient_unet
from zoo_imagen.norm import GroupNorm

KINDS = ["self", "cross"]


def test_skips_are_scaled_by_exactly_the_root_of_a_half():
    assert SKIP_SCALE == 2**-0.5
    model = build(evolve(SMALL["self"], widths=(8, 8, 16), blocks=(1, 1, 1), attention=("none", "none", "self")))
    net, skips, grown, sums = model.net, [], [], []
    for shrink in net.shrink:
        shrink.register_forward_pre_hook(lambda m, x: skips.append(x[0]))
    for grow, after in zip(net.grow, (*net.up[1:], net.norm), strict=True):
        grow.register_forward_hook(lambda m, x, y: grown.append(y))
        after.register_forward_pre_hook(lambda m, x: sums.append(x[0]))
    z, logsnr, cond = asked(SMALL["self"])
    with torch.no_grad():
        model.predict(z, logsnr, cond)
    assert len(sums) == 3
    for total, last, skip in zip(sums, grown, reversed(skips), strict=True):
        assert torch.allclose(total, last + 2**-0.5 * skip, rtol=0, atol=1e-14)


def net_of(z, logsnr, cond, name="self"):
    with torch.no_grad():
        return build(SMALL[name]).predict(z, logsnr, cond).mean


def test_a_level_begins_with_a_strided_convolution_and_ends_by_doubling():
    """Check 9 of the reference, by the order in which layers are used and the sides they see."""
    model = build(evolve(SMALL["self"], widths=(8, 16), blocks=(2, 3)))
    used = []
    for name, module in model.net.named_modules():
        if isinstance(module, Conv | Level):
            module.register_forward_hook(lambda m, x, y, name=name: used.append((name, x[0].shape[-1], y.shape[-1])))
        if name.startswith("grow") and name.count(".") == 1:
            module.register_forward_hook(lambda m, x, y, name=name: used.append((name, x[0].shape[-1], y.shape[-1])))
    z, logsnr, cond = asked(SMALL["self"])
    with torch.no_grad():
        model.predict(z, logsnr, cond)
    outer = [each for each in used if "blocks" not in each[0]]
    assert outer == [
        ("input", 16, 16),
        ("shrink.0", 16, 8), ("down.0", 8, 8),
        ("shrink.1", 8, 4), ("down.1", 4, 4),
        ("up.0", 4, 4), ("grow.0.0", 4, 4), ("grow.0", 4, 8),
        ("up.1", 8, 8), ("grow.1.0", 8, 8), ("grow.1", 8, 16),
        ("out", 16, 16),
    ]  # fmt: skip


def test_a_block_is_norm_swish_convolution_twice_beside_a_linear_shortcut():
    model = efficient_unet(SMALL["self"])
    for level in (*model.net.down, *model.net.up):
        for block in level.blocks:
            layers = [type(m) for m in block.branch.children()]
            assert layers == [GroupNorm, Conv, torch.nn.Linear, GroupNorm, Conv]
            assert block.branch.norm.activation == block.branch.modulated.activation == "silu"
            assert isinstance(block.skip, Pointwise)
    assert [len(level.blocks) for level in (*model.net.down, *model.net.up)] == [1, 2, 2, 1]


@pytest.mark.parametrize(("variant", "crossed"), [("imagen_sr_256", False), ("imagen_sr_1024", True)])
def test_the_papers_have_attention_at_the_coarsest_level_alone(variant, crossed):
    with torch.device("meta"):
        model = efficient_unet(getattr(variants, variant)())
    assert [len(level.blocks) for level in model.net.down] == [2, 4, 8, 8]
    attentions = {name: m for name, m in model.named_modules() if isinstance(m, Attention)}
    assert list(attentions) == ["net.down.3.attention.branch", "net.up.0.attention.branch"]
    for attention in attentions.values():
        assert attention.heads == 8
        assert attention.query.weight.shape == (2048, 1024)
        assert (attention.keys is None) == crossed
    assert [m.stride for m in model.net.shrink] == [2, 2, 2, 2]
    assert sum(p.numel() for p in model.parameters()) == (545_482_115 if crossed else 553_878_915)


def test_four_levels_take_256_to_16_and_any_multiple_of_16():
    """Check 4 and 9: the network for 1024 px, with few channels; it has no size of its own."""
    config = evolve(variants.imagen_sr_1024(), widths=(8, 8, 8, 8), blocks=(1, 1, 1, 1), groups=4, text_width=8)
    assert config.factor == 16
    model = efficient_unet(config)
    sides = []
    for level in model.net.down:
        level.register_forward_hook(lambda m, x, y: sides.append(tuple(y.shape[2:])))
    for size in ((256, 256), (32, 48), (16, 16)):
        z, _, cond = asked(evolve(SMALL["cross"], size=size), torch.float32)
        with torch.no_grad():
            found = model.predict(z, torch.zeros(2), evolve(cond, text=cond.text[..., :8])).mean
        assert found.shape == z.shape
    assert sides[:4] == [(128, 128), (64, 64), (32, 32), (16, 16)]


@pytest.mark.parametrize("name", KINDS)
def test_the_level_of_the_picture_below_alone_moves_the_prediction(name):
    """Check 8: and so does the picture alone; neither is dropped with the caption."""
    z, logsnr, cond = asked(SMALL[name])
    for drop in (None, torch.ones(2, dtype=torch.bool)):
        given = evolve(cond, drop=drop)
        own = net_of(z, logsnr, given, name)
        for other in (evolve(given, low_level=cond.low_level + 1), evolve(given, low=cond.low + 0.1)):
            moved = (net_of(z, logsnr, other, name) - own).abs().flatten(1).amax(1)
            assert float(moved.min()) > 1e-4


def test_the_picture_below_stands_beside_z():
    model = build(SMALL["self"])
    z, logsnr, cond = asked(SMALL["self"])
    fed = []
    model.net.register_forward_pre_hook(lambda m, x: fed.append(x[0]))
    with torch.no_grad():
        model.predict(z, logsnr, cond)
    assert torch.equal(fed[0], torch.cat((z, cond.low), dim=1))
    assert model.net.input.weight.shape[-1] == 6


def test_only_crossed_attention_needs_a_caption():
    with pytest.raises(ValueError, match="'cross' reads a caption"):
        evolve(SMALL["cross"], reads="nothing")
    with pytest.raises(ValueError, match="'blocks' needs one entry a level, 2"):
        evolve(SMALL["self"], blocks=(1,))
    z, logsnr, cond = asked(SMALL["self"])
    blind = build(evolve(SMALL["self"], reads="nothing"))
    with torch.no_grad():
        assert torch.equal(blind.predict(z, logsnr, cond).mean, blind.predict(z, logsnr, evolve(cond, text=None)).mean)

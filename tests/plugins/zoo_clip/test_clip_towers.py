"""CLIP's towers: sizes, causality, pooling, resizing, scores, and what is and is not in its state."""

from __future__ import annotations

import math

import attrs
import pytest
import torch
from clip_fakes import TEXTS, Words, build, pictures
from torch.nn import functional as F

from zoo.errors import PartMismatch
from zoo.interfaces import Reranker
from zoo.nn.residual import residuals
from zoo_clip.configs import Clip as Config
from zoo_clip.configs import clip, clip_tiny, clip_vit_b32
from zoo_clip.model import Clip, square

torch.set_num_threads(1)


def test_published_count_without_allocating():
    config = clip_vit_b32()
    with torch.device("meta"):
        model = Clip(config, Words(49408, 77))
    assert sum(p.numel() for p in model.parameters()) == 151_277_313
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("config", [clip(), clip_tiny()])
def test_small_cards_are_small(config):
    with torch.device("meta"):
        model = Clip(config, Words(config.text_vocab, config.text_length))
    assert sum(p.numel() for p in model.parameters()) < 1e6


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"vision_width": 30, "vision_heads": 4}, "vision_width: 30 is not a multiple of vision_heads"),
        ({"text_width": 30, "text_heads": 4}, "text_width"),
        ({"image_size": 30, "patch": 4}, "image_size: 30 is not a multiple of patch, 4"),
        ({"std": (1.0, 0.0, 1.0)}, "std"),
        ({"text_layers": 0}, "text_layers"),
    ],
)
def test_config_refuses(wrong, text):
    with pytest.raises(ValueError, match=text):
        Config(**wrong)


@pytest.mark.parametrize("missing", ["image_size", "text_vocab", "text_length"])
def test_unbound_config_is_refused(missing):
    with pytest.raises(PartMismatch, match=missing):
        Clip(attrs.evolve(clip_tiny(), **{missing: None}), Words())


def test_another_tokenizer_is_refused():
    with pytest.raises(PartMismatch, match="32 tokens of 384 pieces, its tokenizer gives 16 of 384"):
        Clip(clip_tiny(), Words(length=16))


def test_initial_statistics():
    """Deviations of the published code, in a tower wide enough to measure."""
    torch.manual_seed(0)
    config = attrs.evolve(clip_tiny(), vision_width=128, text_width=64, vision_layers=3)
    model = Clip(config, Words())
    vision, text = model.vision.blocks, model.text.blocks
    for weight, std in [
        (vision[0].branch.qkv.weight, 128**-0.5),
        (vision[0].branch.out.weight, 128**-0.5 * 6**-0.5),
        (vision[1].branch.wide.weight, 256**-0.5),
        (vision[1].branch.out.weight, 128**-0.5 * 6**-0.5),
        (text[2].branch.out.weight, 64**-0.5 * 4**-0.5),
        (model.text.tokens.weight, 0.02),
        (model.text.position, 0.01),
        (model.text.project.weight, 64**-0.5),
        (model.vision.position, 128**-0.5),
        (model.vision.project.weight, 128**-0.5),
    ]:
        assert abs(weight.std().item() / std - 1) < 0.1
    assert math.isclose(model.scale().item(), 1 / 0.07, rel_tol=1e-6)
    assert len(list(residuals(model))) == 2 * (3 + 2)


def test_score_keeps_the_contract():
    model = build()
    assert isinstance(model, Reranker)
    images = pictures(4)
    score = model.score(images, TEXTS)
    assert score.shape == (4,)
    assert (score.abs() <= 1 + 1e-6).all()
    order = torch.tensor([2, 0, 3, 1])
    again = model.score(images[order], [TEXTS[i] for i in order])
    assert torch.allclose(again, score[order], atol=1e-6)
    alone = torch.cat([model.score(images[i : i + 1], TEXTS[i : i + 1]) for i in range(4)])
    assert torch.allclose(alone, score, atol=1e-6)
    with pytest.raises(ValueError, match="4 images and 3 texts"):
        model.score(images, TEXTS[:3])


def test_score_encodes_a_repeated_prompt_once():
    model = build()
    score = model.score(pictures(6), [TEXTS[0]] * 3 + [TEXTS[1]] * 3)
    assert model.tokenizer.calls == [(2, None)]
    ids, mask = model.tokenizer.encode([TEXTS[1]])
    assert torch.allclose(
        score[3:], model.image_features(pictures(6))[3:] @ model.text_features(ids, mask)[0], atol=1e-6
    )


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (20, 20), (48, 80), (33, 17)])
def test_any_picture_size(shape):
    model = build()
    images = F.interpolate(pictures(4), shape, mode="bilinear", align_corners=False)
    assert model.score(images, TEXTS).isfinite().all()
    assert square(images, 32).shape == (4, 3, 32, 32)
    assert square(images, 32).min() >= 0


def test_resizing_is_antialiased_and_centred():
    stripes = (torch.arange(64) % 2).float().expand(1, 3, 64, 64)
    assert (square(stripes, 16) - 0.5).abs()[..., 2:-2].max() < 0.02  # without antialiasing it would be 0 or 1
    ramp = torch.arange(96.0).div(95).expand(1, 3, 32, 96)
    assert torch.equal(square(ramp, 32), ramp[..., 32:64])
    assert torch.equal(square(stripes, 64), stripes)


def test_one_picture_scores_alike_at_two_sizes():
    model = build()
    small, large = pictures(4, 32), pictures(4, 128)
    same, other = model.score(small, TEXTS), model.score(small.flip(0), TEXTS)
    assert (model.score(large, TEXTS) - same).abs().max() < 0.3 * (other - same).abs().max()


def test_text_is_causal_and_padding_is_unseen():
    model = build()
    ids, mask = model.tokenizer.encode(TEXTS)
    hidden = model.text.hidden(ids)
    changed = ids.clone()
    changed[:, 3:] = 7
    assert torch.equal(model.text.hidden(changed)[:, :3], hidden[:, :3])
    assert not torch.allclose(model.text.hidden(changed)[:, 3:], hidden[:, 3:])
    features = model.text_features(ids, mask)
    assert torch.equal(model.text_features(torch.where(mask, ids, 9), mask), features)
    short = int(mask.sum(1).max())
    assert torch.allclose(model.text_features(ids[:, :short], mask[:, :short]), features, atol=1e-6)


def test_padding_columns_are_not_computed():
    """What the tokenizer pads is cut off before the tower, and changes no score."""
    model = build()
    seen = []
    model.text.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    score = model.score(pictures(4), TEXTS)
    assert seen == [(4, max(len(text.split()) for text in TEXTS))]
    ids, mask = model.tokenizer.encode(TEXTS)
    full = (model.image_features(pictures(4)) * model.text_features(ids, mask)).sum(1)
    assert torch.allclose(score, full, atol=1e-6)
    assert model.score(pictures(1), [""]).isfinite().all()


def test_text_is_read_at_its_last_token():
    model = build()
    ids, mask = model.tokenizer.encode(TEXTS)
    hidden = model.text.hidden(ids)
    for i, text in enumerate(TEXTS):
        expected = F.normalize(model.text.project(hidden[i, len(text.split()) - 1]), dim=0)
        assert torch.allclose(model.text_features(ids, mask)[i], expected, atol=1e-6)
    empty = model.text_features(torch.zeros(1, 32, dtype=torch.int64), torch.zeros(1, 32, dtype=torch.bool))
    assert torch.allclose(empty.norm(dim=1), torch.ones(1))


def test_tokenizer_is_a_part_of_its_own():
    model = build()
    assert not any("tokenizer" in name or "state" in name for name in model.state_dict())
    assert model.tokenizer not in list(model.modules())
    twin = build(seed=1)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin.score(pictures(4), TEXTS), model.score(pictures(4), TEXTS))

"""CLIP: shapes, causality, pooling, resizing, what is and is not in its state, and the contrastive loss."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from torch.nn import functional as F

from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond, Reranker
from zoo.nn.residual import checkpoint_branches, residuals
from zoo.rng import Rng
from zoo_clip.configs import Clip as Config
from zoo_clip.configs import clip, clip_tiny, clip_vit_b32
from zoo_clip.model import Clip, contrast, square

torch.set_num_threads(1)
WORDS = ("a", "small", "large", "red", "green", "blue", "circle", "square", "triangle", "cross", "at", "the", "top")
WORDS += ("left",)


class Words(torch.nn.Module):
    """A tokenizer of whole words that counts its calls; like ours it has a state of its own."""

    def __init__(self, vocab_size: int = 384, length: int = 32) -> None:
        super().__init__()
        self.vocab_size, self.length, self.calls = vocab_size, length, []
        self.register_buffer("state", torch.ones(3))

    def encode(self, texts, rng=None):
        """Return ids and mask, as a tokenizer does."""
        self.calls.append((len(texts), rng))
        ids = torch.zeros(len(texts), self.length, dtype=torch.int64)
        mask = torch.zeros(len(texts), self.length, dtype=torch.bool)
        for i, text in enumerate(texts):
            row = [1 + WORDS.index(word) for word in text.split()]
            ids[i, : len(row)] = torch.tensor(row, dtype=torch.int64)
            mask[i, : len(row)] = True
        return ids, mask


def build(seed: int = 0, **changes) -> Clip:
    """Return a tiny CLIP with weights large enough to tell inputs apart."""
    torch.manual_seed(seed)
    model = Clip(attrs.evolve(clip_tiny(), **changes), Words())
    for p in model.parameters():
        if p.ndim:
            torch.nn.init.normal_(p, std=0.2)
    return model


def pictures(n: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    """Return smooth random pictures."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 4, generator=g)
    return F.interpolate(coarse, size, mode="bilinear", align_corners=False)


TEXTS = ("a red circle", "a blue square", "a large green cross at the top left", "a small red circle")


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


def batch_of(n: int = 4) -> Batch:
    """Return pictures with different captions."""
    return Batch(images=pictures(n), texts=TEXTS[:n])


def test_loss_of_distinct_captions_is_the_papers():
    model = build()
    losses = model.loss(batch_of(), Cond(), step=0, rng=Rng(0, range(4)))
    image, text = model.image_features(pictures(4)), model.text_features(*model.tokenizer.encode(TEXTS))
    logits = image @ text.T / 0.07
    labels = torch.arange(4)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    assert torch.allclose(losses["loss"], expected, atol=1e-5)
    assert torch.allclose(losses["accuracy"], (logits.argmax(1) == labels).float().mean())
    assert losses["loss"].requires_grad
    assert not losses["accuracy"].requires_grad
    assert not losses["scale"].requires_grad
    assert Clip.whole_batch


def test_same_captions_are_no_negatives():
    """With two right answers, sharing them is free and preferring one costs."""
    text = F.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), dim=1)
    same = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    loss, hit = contrast(text, text, torch.tensor(100.0), same)
    assert loss.abs().max() < 1e-6
    assert hit.all()
    naive = F.cross_entropy(100 * text @ text.T, torch.arange(3), reduction="none")
    assert torch.allclose(naive[:2], torch.full((2,), math.log(2)), atol=1e-6)
    tilted = F.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]), dim=1)
    assert contrast(text, tilted, torch.tensor(100.0), same)[0][0] > 1e-3
    wrong = contrast(text.flip(0), text, torch.tensor(100.0), same)
    assert not wrong[1][0]
    assert wrong[0][0] > 10


def test_same_captions_in_a_batch():
    """Copies of a caption leave the loss what it is over the distinct ones with as many copies each."""
    model = build()
    images = pictures(4)
    once = model.loss(Batch(images=images, texts=TEXTS), Cond(), step=0, rng=Rng(0, range(4)))
    twice = Batch(images=torch.cat([images, images]), texts=TEXTS * 2)
    both = model.loss(twice, Cond(), step=0, rng=Rng(0, range(8)))
    assert torch.allclose(once["loss"], both["loss"], atol=1e-5)
    assert torch.allclose(once["accuracy"], both["accuracy"])


def test_captions_are_compared_before_the_noise():
    """Two noisy encodings of one caption are still one caption."""
    model = build()
    images = pictures(1).expand(2, -1, -1, -1)
    batch = Batch(images=images, texts=("a red circle", "A  red circle"))
    model.tokenizer.encode = lambda texts, rng=None: (
        torch.tensor([[1, 4, 7], [1, 5, 7]]),
        torch.ones(2, 3, dtype=torch.bool),
    )
    losses = model.loss(batch, Cond(), step=0, rng=Rng(0, range(2)))
    assert losses["accuracy"] == 1
    text = model.text_features(*model.tokenizer.encode(batch.texts))
    both = torch.full((2, 2), True)
    image = model.image_features(images)
    expected = (
        contrast(image, text, model.scale(), both)[0].mean() + contrast(text, image, model.scale(), both)[0].mean()
    )
    assert torch.allclose(losses["loss"], expected / 2, atol=1e-6)


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


def test_loss_gradient_against_differences():
    model = build().double()
    batch = Batch(images=pictures(4).double(), texts=TEXTS[:3] + TEXTS[:1])
    torch.nn.init.constant_(model.logit_scale, 1.0)

    def loss() -> torch.Tensor:
        return model.loss(batch, Cond(), step=0, rng=Rng(0, range(4)))["loss"]

    grads = torch.autograd.grad(loss(), list(model.parameters()))
    g = torch.Generator().manual_seed(1)
    for (name, p), grad in zip(model.named_parameters(), grads, strict=True):
        assert grad.isfinite().all()
        way = torch.randn(p.shape, generator=g, dtype=torch.float64)
        with torch.no_grad():
            p += 1e-5 * way
            high = loss()
            p -= 2e-5 * way
            low = loss()
            p += 1e-5 * way
        expected, got = (high - low) / 2e-5, (grad * way).sum()
        assert abs(expected - got) <= 1e-6 + 1e-4 * abs(got), name


def test_temperature_has_a_ceiling():
    model = build()
    with torch.no_grad():
        model.logit_scale.fill_(6.0)
    assert math.isclose(model.scale().item(), 100, rel_tol=1e-5)
    for sign, passes in ((1.0, True), (-1.0, False)):  # descent along +1 lowers the scale
        (grad,) = torch.autograd.grad(sign * model.scale(), model.logit_scale)
        assert bool(grad != 0) == passes
    with torch.no_grad():
        model.logit_scale.fill_(2.0)
    (grad,) = torch.autograd.grad(-model.scale(), model.logit_scale)
    assert math.isclose(grad.item(), -math.exp(2), rel_tol=1e-5)


def test_loss_wants_pictures_with_captions():
    with pytest.raises(PartMismatch, match="captions"):
        build().loss(Batch(images=pictures(2)), Cond(), step=0, rng=Rng(0, range(2)))


def test_training_noise_reaches_the_tokenizer():
    model = build()
    model.loss(batch_of(), Cond(), step=0, rng=Rng(0, range(4)))
    (size, rng), = model.tokenizer.calls  # fmt: skip
    assert size == 4
    assert isinstance(rng, Rng)


def test_no_global_randomness_and_checkpointing_changes_nothing():
    model = build()
    model.train()
    state = torch.random.get_rng_state()
    found = []
    for on in (False, True):
        checkpoint_branches(model, on)
        loss = model.loss(batch_of(), Cond(), step=0, rng=Rng(0, range(4)))["loss"]
        found.append((loss.detach(), torch.autograd.grad(loss, model.vision.patches.weight)[0]))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_bf16_autocast_stays_close():
    torch.manual_seed(0)
    model = Clip(clip_tiny(), Words())
    exact = model.loss(batch_of(), Cond(), step=0, rng=Rng(0, range(4)))["loss"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(batch_of(), Cond(), step=0, rng=Rng(0, range(4)))["loss"]
    assert loss.dtype == torch.float32
    assert abs(loss - exact) < 0.05
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_it_learns_a_batch(activation):
    torch.manual_seed(0)
    model = Clip(attrs.evolve(clip_tiny(), activation=activation), Words())
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(40):
        losses = model.loss(batch_of(), Cond(), step=step, rng=Rng(0, range(4), step=step))
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["loss"] < 0.1
    assert losses["accuracy"] == 1
    with torch.no_grad():
        right, wrong = model.score(pictures(4), TEXTS), model.score(pictures(4).roll(1, 0), TEXTS)
    assert (right > wrong).all()


RANK = """
import sys, pathlib, torch
from torch import distributed as dist
sys.path.insert(0, sys.argv[1])
from test_clip_model import Clip, Batch, Cond, Rng, build, pictures, TEXTS
from zoo.nn import across
rank, folder = int(sys.argv[2]), pathlib.Path(sys.argv[3])
dist.init_process_group("gloo", store=dist.FileStore(str(folder / "store"), 2), rank=rank, world_size=2)
across.set_group(None)
model, images, texts = build(), pictures(4), TEXTS[:3] + TEXTS[:1]
rows = slice(2 * rank, 2 * rank + 2)
loss = model.loss(Batch(images=images[rows], texts=texts[rows]), Cond(), step=0, rng=Rng(0, range(4))[rows])["loss"]
loss.backward()
grads = {name: p.grad for name, p in model.named_parameters()}
for g in [*grads.values(), loss.data]:
    dist.all_reduce(g)
    g /= 2
torch.save((loss.detach(), grads), folder / f"rank{rank}.pt")
dist.destroy_process_group()
"""


def test_two_processes_equal_one(tmp_path):
    """Averaged over two ranks, loss and gradients are those of the whole batch; equal captions sit on both ranks."""
    command = [sys.executable, "-c", RANK, str(Path(__file__).parent)]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(r), str(tmp_path)], env=env) for r in range(2)]
    assert [rank.wait(300) for rank in ranks] == [0, 0]
    model = build()
    batch = Batch(images=pictures(4), texts=TEXTS[:3] + TEXTS[:1])
    loss = model.loss(batch, Cond(), step=0, rng=Rng(0, range(4)))["loss"]
    loss.backward()
    for r in range(2):
        theirs, grads = torch.load(tmp_path / f"rank{r}.pt")
        assert torch.allclose(theirs, loss, atol=1e-6)
        for name, p in model.named_parameters():
            assert torch.allclose(grads[name], p.grad, atol=1e-5, rtol=1e-4), name

"""CLIP's contrastive loss: against the paper's, equal captions, gradients, precision, training, two processes."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from clip_fakes import TEXTS, Words, batch_of, build, pictures
from torch.nn import functional as F

from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond
from zoo.nn.residual import checkpoint_branches
from zoo.rng import Rng
from zoo_clip.configs import clip_tiny
from zoo_clip.model import Clip, contrast

torch.set_num_threads(1)


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
from clip_fakes import build, pictures, TEXTS
from zoo.interfaces import Batch, Cond
from zoo.nn import across
from zoo.rng import Rng
torch.set_num_threads(1)
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

"""The benchmark's two sides do the same amount of work; nothing is timed here."""

import sys

import pytest
import torch

from zoo.bench import dalle, imagegpt
from zoo.bench.imagegpt import Size, peer_model, sampling, training
from zoo.errors import NotInstalled
from zoo.interfaces import Cond

SMALL = Size(width=16, depth=3, heads=2, side=4, vocab=20)


@pytest.mark.parametrize("family", [dalle, imagegpt])
def test_both_sides_draw_and_learn_as_many_tokens(family, monkeypatch):
    monkeypatch.setattr(dalle, "SIZE", SMALL)
    ours = dalle.our_model() if family is dalle else imagegpt.our_model(SMALL)
    try:
        peer = peer_model(SMALL)
    except NotInstalled as error:
        pytest.skip(str(error))
    mine, theirs = sampling(ours.eval(), peer.eval(), SMALL, 2)
    drawn, peers = mine(), theirs()
    assert drawn.shape == (2, 16)
    assert peers.shape == (2, 17)
    assert torch.equal(peers[:, 0], torch.full((2,), 20))
    for update in training(ours.train(), peer.train(), SMALL, 2):
        update()
    for model in (ours, peer):
        assert all(p.grad is not None for p in model.parameters())
    assert peer(input_ids=torch.zeros(2, 16).long()).logits.shape == ours.logits(drawn, Cond()).shape


def test_flops_are_those_of_the_matrices_and_of_the_keys_before():
    ours = imagegpt.our_model(SMALL)
    matrices = sum(p.numel() for p in ours.blocks.parameters() if p.ndim == 2) + ours.head.weight.numel()
    scores = sum(i + 1 for i in range(16))
    assert SMALL.flops() == 2 * 16 * matrices + 3 * 2 * 2 * 16 * scores


def test_a_missing_peer_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotInstalled, match=r"image-zoo\[bench\]"):
        peer_model(SMALL)

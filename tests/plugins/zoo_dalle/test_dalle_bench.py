"""The benchmark's two sides do the same amount of work; nothing is timed here."""

import sys

import pytest
import torch

from zoo.bench import dalle
from zoo.errors import NotInstalled


@pytest.fixture
def small(monkeypatch):
    for name, value in (("WIDTH", 16), ("DEPTH", 3), ("HEADS", 2), ("GRID", (4, 4)), ("TOKENS", 16), ("VOCAB", 20)):
        monkeypatch.setattr(dalle, name, value)


def test_both_sides_draw_and_learn_as_many_tokens(small):
    ours = dalle.our_model()
    try:
        peer = dalle.peer_model()
    except NotInstalled as error:
        pytest.skip(str(error))
    mine, theirs = dalle.sampling(ours.eval(), peer.eval(), 2)
    drawn, peers = mine(), theirs()
    assert drawn.shape == (2, 16)
    assert peers.shape == (2, 17)
    assert torch.equal(peers[:, 0], torch.full((2,), 20))
    for update in dalle.training(ours.train(), peer.train(), 2):
        update()
    for model in (ours, peer):
        assert all(p.grad is not None for p in model.parameters())
    assert peer(input_ids=torch.zeros(2, 16).long()).logits.shape == ours.logits(drawn, dalle.Cond()).shape


def test_flops_count_the_keys_that_are_kept(small):
    ours = dalle.our_model()
    kept = 0
    for kind in ours.kinds:
        mask = ours.masks.dense(kind, 16, torch.device("cpu"))  # the start vector and 15 codes
        kept += int(mask.sum())
    dense = 16 * (3 * 24 * 16**2 + 2 * 16 * 20)
    assert dalle.needed_flops(ours.kinds) == dense + 4 * 16 * kept


def test_a_missing_peer_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(NotInstalled, match=r"image-zoo\[bench\]"):
        dalle.peer_model()

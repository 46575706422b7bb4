"""The benchmark counts the work that the masks keep; nothing is timed here."""

import torch

from zoo.bench import dalle
from zoo.bench.imagegpt import Size


def test_flops_count_the_keys_that_are_kept(monkeypatch):
    monkeypatch.setattr(dalle, "SIZE", Size(width=16, depth=3, heads=2, side=4, vocab=20))
    ours = dalle.our_model()
    kept = 0
    for kind in ours.kinds:
        mask = ours.masks.dense(kind, 16, torch.device("cpu"))  # the start vector and 15 codes
        kept += int(mask.sum())
    dense = 16 * (3 * 24 * 16**2 + 2 * 16 * 20)
    assert dalle.needed_flops(ours.kinds) == dense + 4 * 16 * kept

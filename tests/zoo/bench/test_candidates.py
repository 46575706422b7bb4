"""The benchmark of candidates, in small."""

from zoo.bench import candidates
from zoo.bench.command import BENCHES

SMALL = ("image_size=64", "codebook.groups=4", "codebook.n_hid=8", "codebook.n_init=8", "prior.width=32",
         "prior.depth=1")  # fmt: skip


def test_it_measures_processes_of_their_own():
    assert BENCHES["candidates"] == candidates.__name__
    (row,) = candidates.rows(SMALL, few=4, many=16, chunk=4)
    assert (row.unit, row.sizes["codes"], row.sizes["side"]) == ("MiB", 64, 64)
    assert row.ours > 0
    assert row.peer > 0
    assert row.ratio == row.ours / row.peer

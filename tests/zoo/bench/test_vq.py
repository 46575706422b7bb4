"""The quantiser's row, at a size that takes no time; the ratio itself is not a test."""

import sys

import pytest

from zoo.bench import vq
from zoo.errors import NotInstalled


def test_a_missing_peer_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(NotInstalled, match=r"image-zoo\[bench\]"):
        vq.rows()


def test_row(monkeypatch):
    pytest.importorskip("vector_quantize_pytorch")
    for name in ("CODES", "WIDTH", "VECTORS"):
        monkeypatch.setattr(vq, name, 64)
    (row,) = vq.rows(pairs=1)
    assert (row.name, row.unit) == ("vq-ema", "s")
    assert row.ours > 0
    assert row.peer > 0
    assert row.sizes["codes"] == 64

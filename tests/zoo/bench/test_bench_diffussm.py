"""DiffuSSM beside DiT: the figures that need no clock."""

import pytest

from zoo.bench import diffussm
from zoo.bench.timing import Row


def test_exponents():
    assert diffussm.exponents({256: 1.0, 1024: 4.0, 4096: 64.0}) == {1024: pytest.approx(1), 4096: pytest.approx(2)}


def test_multiplications_grow_as_they_must():
    found = diffussm.planned()
    growth = {name: values[65_536] / values[16_384] for name, values in found.items()}
    assert growth["DiffuSSM-XL"] == pytest.approx(4, rel=1e-3)
    assert growth["DiT-XL/1"] > 12
    assert found["DiT-XL/2"][256] == pytest.approx(found["DiT-XL/1"][256] / 4, rel=0.05)


def test_rows_and_pictures(tmp_path):
    (row,) = diffussm.rows({16: 1})
    assert row.sizes["diffussm_params"] == pytest.approx(row.sizes["dit_params"], rel=0.02)
    assert row.ratio > 0
    twice = [row, Row(row.name, row.ours, row.peer, row.ratio, "s", {**row.sizes, "positions": 64})]
    diffussm.draw(twice, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

"""A sample of the bench of moments: bytes are what they should be, times are there, a training is kept."""

import pytest

from zoo.bench import moments as bench


def test_bytes_and_times(monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("no compiler")

    monkeypatch.setattr("zoo.train.adam16._one_kernel", lambda: no_compiler)
    rows = {row.name: row for row in bench.costs(pairs=1, width=64, depth=2, vocab=32)}
    assert rows["optimiser state, matrices"].ratio == 2.0
    assert 1.0 < rows["optimiser state, the whole"].ratio < 2.0
    assert rows["optimiser state, matrices"].ours == 4 * 2 * 12 * 64**2 / 2**20
    assert {"optimiser step, plain", "whole update, plain"} < rows.keys()
    assert not any("compiled" in name for name in rows)
    assert rows["whole update, plain"].ours > rows["optimiser step, plain"].ours / 2 > 0


def test_dalle_s_own_are_half(monkeypatch):
    assert bench.planned().ratio == pytest.approx(1.968, abs=0.001)


def test_losses_are_compared_at_the_end(tmp_path):
    for kind, last in (("16-bit", 1.01), ("fp32", 1.0)):
        (tmp_path / kind).mkdir()
        lines = [f'{{"part": "prior", "step": {i + 1}, "loss": {5.0 if i < 10 else last}}}' for i in range(60)]
        (tmp_path / kind / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    row = bench.Work(tmp_path, steps=60).row()
    assert (row.ours, row.peer) == pytest.approx((1.01, 1.0))

"""The bookkeeping of the timer; how fast anything is, is not a test."""

import itertools

import pytest

from zoo.bench import timing


def test_calls_alternate_and_medians_are_per_side(monkeypatch):
    calls, clock = [], itertools.count()
    monkeypatch.setattr(timing, "CLOCKS", {"wall": lambda: float(next(clock))})

    def ours():
        calls.append("ours")

    def peer():
        calls.append("peer")
        next(clock), next(clock)  # takes three ticks where ours takes one

    result = timing.alternate(ours, peer, pairs=3, warmup=1)
    assert calls == ["ours", "peer", "ours", "peer", "peer", "ours", "ours", "peer"]
    assert (result.ours, result.peer, result.ratio) == (1.0, 3.0, 3.0)


def test_peak_counts_two_flops_a_product(monkeypatch):
    clock = itertools.count(step=0.5)
    monkeypatch.setattr(timing, "CLOCKS", {"wall": lambda: float(next(clock))})
    assert timing.matmul_peak(size=8, repeats=2) == pytest.approx(2 * 8**3 / 0.5)

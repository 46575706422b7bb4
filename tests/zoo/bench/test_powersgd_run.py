"""What is planned, compared and launched; the trainings themselves are no test."""

import json

import attrs
import pytest

from zoo.bench import powersgd_run as bench
from zoo.bench import processes
from zoo.planning.plan import plan


def found(name="powersgd", **changes):
    made = bench.Found(
        name=name, loss=2.0, sent=1000, planned=1000, update=30, rest=10, matrices_dense=200, unequal=0
    )  # fmt: skip
    return attrs.evolve(made, **changes)


def planned(name, **how):
    reducer = bench.VARIANTS[name]
    return plan("dalle", part="prior", devices=4, batch=16, precision="fp32", reducer=reducer, **bench.LAYOUT, **how)


def test_ranks_save_what_they_are_chosen_for():
    published, paper = planned("powersgd").reduced, planned("powersgd-dalle").reduced
    assert published.matrices_dense >= 10 * published.matrices
    assert paper.matrices_dense >= 4 * paper.matrices
    assert published.matrices_dense == 2 * paper.matrices_dense  # each in the format its factors are sent in
    settings = bench.registry.reducer_config(bench.VARIANTS["powersgd-dalle"])
    assert settings.rank >= 0.2258 * 128


def test_dense_updates_at_the_start_are_planned_as_such():
    made = planned("powersgd")
    assert bench.planned(made, 150, 100) == 100 * made.reduced.start_up + 50 * made.reduced.sent
    assert bench.planned(made, 50, 100) == 50 * made.reduced.start_up
    dense = planned("dense")
    assert bench.planned(dense, 3, 0) == 3 * made.reduced.start_up


def test_matrices_are_what_is_left_of_an_update():
    assert found().matrices == 20
    assert found(matrices_dense=0).matrices == 0


def test_rows_and_table():
    work = bench.Work(folder=None)
    three = [found("dense", loss=2.0, sent=4000, matrices_dense=0), found(loss=2.1), found("powersgd-dalle", unequal=2)]
    rows = {row.name: row for row in bench.as_rows(three, work)}
    assert len(rows) == 2 + 2 * 5
    assert rows["powersgd:rank=12: validation loss beside dense"].ratio == pytest.approx(2 / 2.1)
    assert rows["powersgd:rank=12: a compressed update's matrices, in one number format"].ratio == 10
    assert rows["powersgd:rank=12: the whole run beside dense"].ratio == 4
    assert rows["powersgd-dalle:rank=29: processes whose weights differ from their like's"].ratio == 0
    text = bench.table(three)
    assert "(+5.00% of dense)" in text
    assert "2 DIFFER" in text
    assert "of dense" not in bench.table(three[1:])


def test_what_is_done_is_not_trained_again(tmp_path, monkeypatch):
    launched = []
    monkeypatch.setattr(processes, "train", lambda size, commands, **how: launched.append((size, commands)))
    work = bench.Work(folder=tmp_path)
    work.out("dense").mkdir()
    (work.out("dense") / "prior.safetensors").touch()
    bench.train(work, ["dense"])
    assert not launched
    bench.train(work, bench.VARIANTS)
    parts = [(size, commands[0]["part"]) for size, commands in launched]
    assert parts == [(1, "codebook"), *[(4, "prior")] * (len(bench.VARIANTS) - 1)]
    assert [commands[0]["reducer"] for _, commands in launched[1:]] == list(bench.VARIANTS.values())[1:]
    json.dumps([commands for _, commands in launched])


def test_validation_loss_is_of_the_run_and_the_same_every_time(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "CHUNK", 4)
    command = {"model": "dalle-tiny", "data": "shapes:32", "steps": 1, "batch": 2, "sample_every": 0, "engine": "torch"}
    for part in ("codebook", "prior"):
        processes.run({**command, "part": part, "out": str(tmp_path / "run")})
    one, two = (bench.validation_loss(tmp_path / "run", samples=6) for _ in range(2))
    assert one == two
    assert 0 < one < 10
    assert one != bench.validation_loss(tmp_path / "run", samples=4)

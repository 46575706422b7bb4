"""What is compared with what, and how far apart; the trainings themselves are no test."""

import json
import math

import pytest

from zoo.bench import processes, stages
from zoo.data.captions import sidecar


def write(work, layout, case, losses, part=None):
    out = work.out(layout, case)
    out.mkdir(parents=True)
    rows = [{"part": part or case.part, "step": i + 1, "loss": x} for i, x in enumerate(losses)]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_the_largest_difference_counts_and_a_lost_update_is_infinite():
    assert stages.apart([2.0, 4.0], [2.0, 4.0], 2) == 0
    assert stages.apart([2.0, -4.0], [2.002, -4.0], 2) == pytest.approx(1e-3)
    assert stages.apart([2.0], [2.0], 2) == math.inf
    assert stages.apart([2.0, 4.0], [2.0], 2) == math.inf


def test_every_case_and_layout_has_a_folder_of_its_own(tmp_path):
    work = stages.Work(folder=tmp_path)
    places = [work.out(layout, case) for layout in (*stages.ALONE, *stages.LAYOUTS) for case in stages.CASES]
    assert len(set(places)) == len(places)
    assert {how.said["zero"] for how in stages.LAYOUTS.values() if "zero" in how.said} == {0, 1, 2, 3}
    assert {how.beside for how in stages.LAYOUTS.values()} == set(stages.ALONE)
    assert all((how.beside == stages.ONE_DOUBLE) == (how.said == stages.DOUBLE) for how in stages.LAYOUTS.values())


def test_rows_compare_pieces_with_the_whole_batch_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "train_all", lambda work: None)
    work = stages.Work(folder=tmp_path, steps=2)
    for name, scale in {stages.ONE: 1.0, stages.ONE_DOUBLE: 3.0}.items():
        for case in dict.fromkeys(case.whole for case in stages.CASES):
            write(work, name, case, [scale, 2.0 * scale])
    for layout, how in stages.LAYOUTS.items():
        scale = 3.0 if how.beside == stages.ONE_DOUBLE else 1.0
        for case in stages.CASES:
            write(work, layout, case, [scale, 2.0 * scale * (1 + (1e-4 if case.pieces > 1 else 1e-6))])
    found = {row.name: row for row in stages.rows(work)}
    assert len(found) == len(stages.CASES) * len(stages.LAYOUTS)
    beyond = [name for name, row in found.items() if row.ratio < 1]
    assert len(beyond) == len(stages.LAYOUTS)
    assert all("2 pieces" in name for name in beyond)
    assert all(row.peer == stages.BAR for row in found.values())


def test_a_layout_is_launched_once_with_what_is_left(tmp_path, monkeypatch):
    launched = []
    monkeypatch.setattr(processes, "train", lambda size, commands: launched.append((size, commands)))
    layout = "2 processes, ZeRO 0"
    work, how = stages.Work(folder=tmp_path), stages.LAYOUTS[layout]
    base = work.out(stages.ONE, stages.CODEBOOK)
    base.mkdir()
    (base / "run.toml").touch()
    (base / "codebook.safetensors").touch()
    done, *left = stages.CASES
    work.out(layout, done).mkdir()
    (work.out(layout, done) / "codebook.safetensors").touch()
    stages.train(work, layout, how, stages.CASES)
    ((size, commands),) = launched
    assert size == 2
    assert [command["part"] for command in commands] == [case.part for case in left]
    assert all((work.out(layout, case) / "codebook.safetensors").exists() for case in left if case.part == "prior")
    assert [command["accumulate"] for command in commands] == [case.pieces for case in left]
    assert commands[0]["set"] == ("codebook.train.lr=0.0001",)
    assert [("set" in command) for command in commands] == [case.rate is not None for case in left]


def test_captions_are_of_very_different_lengths(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "PICTURES", 6)
    stages.write_pictures(tmp_path / "pictures")
    paths = sorted((tmp_path / "pictures").glob("*.png"))
    words = [len(text.split()) for path in paths for text in sidecar(tmp_path / "pictures", path)]
    assert len(words) == 6
    assert min(words) == 1
    assert max(words) > 10

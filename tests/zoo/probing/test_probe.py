"""Features, votes, and the report of a probe."""

import re

import numpy as np
import pytest
import torch
from probing_fakes import CLASSES, LENGTH, Bar, FakeData, splits, subject

from zoo.errors import BadData, BadRun, ConfigError
from zoo.probing import features, plots, results
from zoo.probing.linear import SOLVERS, Choice
from zoo.probing.probe import Ask, beside, lines, probe
from zoo.probing.splits import Part
from zoo.probing.splits import splits as splits_of

ALL = (0, 1, 2)


def part(n=50, **how):
    return Part(FakeData(n, 5, **how), np.arange(n))


def test_features_are_those_of_each_picture_whatever_the_chunk(tmp_path):
    told = []
    one = features.extract(subject(tmp_path), part(), ALL, chunk=64, advance=told.append)
    two = features.extract(subject(tmp_path), part(), ALL, chunk=7)
    assert torch.allclose(one.values, two.values, atol=1e-6)
    assert one.values.shape == (1, 3, 50, 12)
    assert sum(told) == 50
    assert one.joined(range(1, 3)).shape == (50, 24)
    few = features.extract(subject(tmp_path), part(), (2,))
    assert few.values.shape == (1, 1, 50, 12)
    assert torch.allclose(few.values[0, 0], one.values[0, 2], atol=1e-6)
    assert features.shape(subject(tmp_path)) == (3, 12)


def test_a_masked_prior_is_shown_independent_masks_that_the_seed_decides(tmp_path):
    fake = subject(tmp_path, causal=False)
    one = features.extract(fake, part(400), ALL, masks=3, seed=1)
    shown = torch.stack([codes for codes in fake.prior.seen if len(codes) == 64][:3])  # the masks of one chunk
    share = (shown < 0).float().mean()
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / shown.numel())
    assert not torch.equal(shown[0] < 0, shown[1] < 0)
    both = ((shown[0] < 0) & (shown[1] < 0)).float().mean()
    assert abs(both - 0.25**2) < 0.03
    again = features.extract(subject(tmp_path, causal=False), part(400), ALL, masks=3, seed=1, chunk=9)
    other = features.extract(subject(tmp_path, causal=False), part(400), ALL, masks=3, seed=2)
    assert torch.allclose(one.values, again.values, atol=1e-6)
    assert not torch.allclose(one.values, other.values)


def test_features_are_kept_and_known_again_and_computed_anew_where_damaged(tmp_path):
    fake = subject(tmp_path)
    one = features.kept(fake, part(), ALL, tmp_path)
    calls = len(fake.prior.seen)
    two = features.kept(fake, part(), ALL, tmp_path)
    assert len(fake.prior.seen) == calls
    assert torch.equal(one.values, two.values)
    assert np.array_equal(one.labels, two.labels)
    (file,) = tmp_path.glob("features-*.safetensors")
    file.write_bytes(file.read_bytes()[:-9])
    assert torch.equal(features.kept(fake, part(), ALL, tmp_path).values, one.values)
    assert len(fake.prior.seen) > calls
    features.kept(fake, part(51), ALL, tmp_path)
    assert len(list(tmp_path.glob("features-*.safetensors"))) == 2


def test_the_modal_class_wins_and_ties_are_drawn():
    rows = np.arange(3000)
    told = np.repeat(np.array([[0], [2], [2], [1], [0]]), 3000, axis=1)
    told[:, :10] = np.array([3, 1, 3, 0, 2])[:, None]
    voted = features.vote(told, rows, 0, 4)
    assert (voted[:10] == 3).all()
    counts = np.bincount(voted[10:], minlength=4)
    assert counts[1] == counts[3] == 0
    assert abs(counts[0] / 2990 - 0.5) < 4 * np.sqrt(0.25 / 2990)
    assert np.array_equal(voted, features.vote(told, rows, 0, 4))
    assert not np.array_equal(voted, features.vote(told, rows, 1, 4))
    assert np.array_equal(voted[5:], features.vote(told[:, 5:], rows[5:], 0, 4))  # by the row, not by the place
    assert np.array_equal(features.vote(told[:1], rows, 0, 4), told[0])


@pytest.mark.parametrize("solver", ["lbfgs", "sgd"])
def test_the_layer_that_knows_is_found(tmp_path, solver):
    ask = Ask(solver=solver, steps=200, labels_per_class=(4, 20), draws=3, concat=2)
    report = probe(subject(tmp_path), splits(), ask, bar=Bar, folder=tmp_path)
    shares = [row["accuracy"] for row in report["layers"]]
    assert shares[1] == shares[2] == 1.0
    assert shares[0] < 0.5
    assert report["best"]["layer"] == 1
    assert [few["labels"] for few in report["labels_per_class"]] == [4, 20]
    assert all(len(few["draws"]) == 3 and few["mean"] > 0.9 for few in report["labels_per_class"])
    assert report["concat"]["layers"] == [0, 1]
    assert report["concat"]["features"] == 24
    text = "\n".join(lines(report))
    assert "best" in text
    assert "4 labels a class, layer 1" in text
    assert f"layer and {'penalty' if solver == 'lbfgs' else 'learning rate'} are what all labels have chosen" in text
    plots.over_layers([report], tmp_path / "layers.png")
    plots.over_labels([report], tmp_path / "labels.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")


def test_random_labels_are_told_by_chance(tmp_path):
    report = probe(subject(tmp_path), splits(random_labels=True), Ask(), bar=Bar)
    assert all(abs(row["accuracy"] - 1 / CLASSES) < 4 * np.sqrt(0.1875 / 200) for row in report["layers"])


def test_labels_that_are_wrong_for_a_share_bound_the_accuracy(tmp_path):
    """With probability 0.4 the picture shows a class drawn anew, so the best is right 0.6 + 0.4 / 4 of the time."""
    report = probe(subject(tmp_path), splits(800, 800, noise=0.4), Ask(layers=(1,)), bar=Bar)
    assert abs(report["best"]["accuracy"] - 0.7) < 4 * np.sqrt(0.21 / 800)


def test_a_masked_run_has_its_vote(tmp_path):
    report = probe(subject(tmp_path, causal=False), splits(other=400, noise=0.1), Ask(masks=5), bar=Bar)
    assert report["objective"] == "masked"
    assert all("votes" in row for row in report["layers"])
    assert "votes" in "\n".join(lines(report))
    assert "votes" not in probe(subject(tmp_path), splits(), Ask(masks=5), bar=Bar)["best"]


def test_a_layer_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="layers 0 to 2, there is no 7"):
        probe(subject(tmp_path), splits(), Ask(layers=(1, 7)), bar=Bar)


def test_neighbours_of_the_best_layer_stay_within_the_model():
    assert list(beside(5, 5, 25)) == [3, 4, 5, 6, 7]
    assert list(beside(0, 5, 25)) == [0, 1, 2, 3, 4]
    assert list(beside(24, 5, 25)) == [20, 21, 22, 23, 24]
    assert list(beside(1, 5, 3)) == [0, 1, 2]


def test_where_held_out_classes_were_never_seen_validation_judges():
    found = splits_of("shapes:objects=1", size=16, pictures=200)
    assert found.test.data.split == "validation"
    assert "classes that training has not" in found.note
    assert found.validation.data.split == "train"
    assert not set(found.validation.rows) & set(found.train.rows)
    assert (len(found.train), len(found.validation), len(found.test)) == (200, 1000, 1000)


def test_data_without_labels_is_refused():
    with pytest.raises(BadData, match="'emoji' has no class labels; take shapes"):
        splits_of("emoji", size=16)


def test_results_have_a_place_by_their_data(tmp_path):
    assert results.slug("shapes") == "shapes"
    assert results.slug("shapes:n=5000,objects=1") == "shapes-n-5000-objects-1"
    assert re.fullmatch("folder-my-pets-[0-9a-f]{8}", results.slug("folder:/home/me/My Pets/"))
    place = results.place("runs/a", "probe", "cifar10:x/cifar-10-batches-py").as_posix()
    assert re.fullmatch("runs/a/probe/cifar10-cifar-10-batches-py-[0-9a-f]{8}", place)


def test_paths_that_end_alike_have_places_of_their_own_and_one_path_has_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()
    assert results.slug("folder:a/pets") != results.slug("folder:b/pets")
    for typed in ("pets", "./pets/", "a/../pets", f"{tmp_path}/pets"):
        assert results.slug(f"folder:{typed}") == results.slug(f"folder:{tmp_path / 'pets'}")
        assert results.whole(f"folder:{typed}") == f"folder:{tmp_path / 'pets'}"
    assert results.whole("shapes:n=5") == "shapes:n=5"


def test_compare_reads_what_there_is_and_says_what_to_type(tmp_path):
    ar, bert = tmp_path / "ar", tmp_path / "bert"
    with pytest.raises(ConfigError, match=r"type: zoo probe .*ar --data shapes"):
        results.compare([str(ar)], "shapes")
    judged = {"data": "shapes", "test": "heldout", "pictures": {"test": 40}}
    said = {**judged, "card": "x", "objective": "autoregressive", "best": {"accuracy": 0.5}}
    results.write(said, results.place(ar, "probe", "shapes") / results.PROBE)
    said = {**judged, "card": "y", "objective": "masked", "after": {"test": {"accuracy": 0.6, "votes": 0.7}}}
    results.write(said, results.place(bert, "finetune", "shapes") / results.FINETUNE)
    rows = results.compare([str(ar), str(bert)], "shapes")
    assert [(row["name"].split("\n")[0], row["probe"], row["finetune"]) for row in rows] == [
        ("AR", 0.5, None), ("BERT", None, 0.6), ("BERT, masks vote", None, 0.7),
    ]  # fmt: skip
    assert results.table(rows)[1].split() == ["AR,", "ar", "50.0%", "-"]
    plots.compared(rows, tmp_path / "compare.png", "shapes")
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"data": "shapes:objects-1"}, r"is of 'shapes:objects-1', not of 'shapes:objects=1'"),
        ({"pictures": {"test": 41}}, r"was judged on 41 pictures of heldout, .* on 40 pictures of heldout"),
        ({"test": "validation"}, r"was judged on 40 pictures of validation"),
    ],
)
def test_compare_refuses_other_data_and_other_test_pictures(tmp_path, other, says):
    uri = "shapes:objects=1"
    said = {"card": "x", "objective": "autoregressive", "data": uri, "test": "heldout", "pictures": {"test": 40}}
    results.write(said, results.place(tmp_path, "probe", uri) / results.PROBE)
    results.write(said | other, results.place(tmp_path, "finetune", uri) / results.FINETUNE)
    with pytest.raises(BadRun, match=says):
        results.compare([str(tmp_path)], uri)


@pytest.mark.parametrize(("train", "seen"), [(200, 400), (100, 100)])
def test_pictures_that_chose_are_fitted_on_only_where_they_are_no_more(tmp_path, monkeypatch, train, seen):
    fitted = []
    choice = Choice({"C": 1.0}, 0.5, lambda data: fitted.append(len(data.y)) or (lambda x: np.zeros(len(x))))
    monkeypatch.setitem(SOLVERS, "lbfgs", lambda *_, **__: choice)
    report = probe(subject(tmp_path), splits(train), Ask(layers=(1,)), bar=Bar)
    assert fitted == [seen]
    assert report["folded"] == (seen > train)
    assert ("100 pictures (200 others chose)" in lines(report)[1]) == (seen == train)


def test_the_fake_is_as_long_as_its_pictures(tmp_path):
    codes = features.codes_of(subject(tmp_path).generator, FakeData(3, 0).read(range(3)))
    assert codes.shape == (3, LENGTH)

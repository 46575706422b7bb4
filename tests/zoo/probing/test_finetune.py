"""Fine-tuning: its loss, its end, what it keeps, and going on after a stop."""

import json
import os
import signal

import attrs
import numpy as np
import pytest
import torch
from probing_fakes import CLASSES, Bar, FakeConfig, splits, subject

from zoo.errors import BadRun
from zoo.interfaces import Batch
from zoo.probing.classifier import Classifier
from zoo.probing.finetune import _before, _judge, finetune
from zoo.probing.watch import Settings, Watch
from zoo.rng import Rng
from zoo.train.interrupt import Interrupted
from zoo.train.metrics import read_rows
from zoo.weights import load_tensors, read_metadata


@pytest.fixture
def run(tmp_path):
    """A run folder as far as fine-tuning copies from it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text('format = 1\ncard = "fake"\nseed = 0\ndata = "fake"\n[config]\n')
    return folder


def batch_of(classifier, rows=8):
    found = splits()
    batch = found.train.data.read(range(rows))
    return classifier.encode("finetune", batch)


def test_the_loss_is_the_priors_own_plus_the_heads(run):
    classifier = Classifier(subject(run), CLASSES)
    batch = batch_of(classifier)
    losses = classifier.loss("finetune", batch, step=0, rng=Rng(0, range(8)))
    assert losses["clf"] == pytest.approx(np.log(CLASSES), abs=1e-6)  # the head is zero
    assert losses["gen"] == pytest.approx(np.log(8), abs=1e-6)
    assert losses["loss"].item() == pytest.approx((losses["gen"] + losses["clf"].detach()).item())
    losses["loss"].backward()
    assert classifier.head.weight.grad.abs().sum() > 0
    assert classifier.prior.guess.grad.abs().sum() > 0
    assert not classifier.prior.map.weight.grad.any()  # behind a head that is zero
    with torch.no_grad():
        classifier.head.weight.normal_()
    classifier.loss("finetune", batch, step=0, rng=Rng(0, range(8)))["loss"].backward()
    assert classifier.prior.map.weight.grad.any()


def test_a_masked_prior_is_shown_masks_in_training_too(run):
    fake = subject(run, causal=False)
    classifier = Classifier(fake, CLASSES)
    batch = batch_of(classifier)
    before = len(fake.prior.seen)
    for step in (0, 1):
        classifier.loss("finetune", batch, step=step, rng=Rng(0, range(8), step=step))
    one, two = fake.prior.seen[before:]
    assert (one < 0).any()
    assert not torch.equal(one, two)


def test_a_prior_that_can_is_passed_once_and_shows_head_and_loss_the_same_masks(run):
    fake = subject(run, causal=False)
    calls = []

    def loss_and_features(batch, cond, *, step, rng):
        calls.append((batch.codes, cond.filled(), step))
        features = fake.prior.map(torch.ones(len(batch), 8))
        return {"loss": fake.prior.guess.sum() + 3}, features

    classifier = Classifier(fake, CLASSES)
    batch = batch_of(classifier)
    fake.prior.loss_and_features = loss_and_features
    fake.prior.loss = fake.prior.features = lambda *_, **__: pytest.fail("a second pass")
    losses = classifier.loss("finetune", batch, step=7, rng=Rng(0, range(8)))
    assert [call[1:] for call in calls] == [({}, 7)]
    assert calls[0][0] is batch.codes
    assert losses["gen"] == 3
    assert losses["loss"].item() == pytest.approx(3 + np.log(CLASSES))


def test_a_prior_that_reads_a_condition_is_not_told_it_for_the_head(run):
    fake = subject(run)
    classifier = Classifier(fake, CLASSES)
    fake.generator.reads_what = "label"
    fake.prior.loss_and_features = lambda *_, **__: pytest.fail("its features would be told the label")
    told = []
    features = fake.prior.features
    fake.prior.features = lambda codes, cond: told.append(cond) or features(codes, cond)
    classifier.loss("finetune", batch_of(classifier), step=0, rng=Rng(0, range(8)))
    assert len(told) == 1
    assert told[0].label is None
    assert told[0].drop.all()


@pytest.mark.parametrize("causal", [True, False])
def test_before_is_what_the_head_of_zeros_tells(run, causal):
    found, settings = splits(), Settings()
    classifier = Classifier(subject(run, causal=causal), CLASSES)
    known, judged = _before(classifier, found, settings), _judge(classifier, found, settings, Bar)
    assert known.keys() == judged.keys()
    for split, said in judged.items():
        assert known[split] == pytest.approx(said, abs=1e-6)


def test_a_validation_looks_at_some_pictures_evenly_spread(run, tmp_path):
    part = splits().validation
    assert part.spread(8).rows.tolist() == [0, 25, 50, 75, 100, 125, 150, 175]
    assert part.spread(150).rows.tolist() == sorted(set(part.spread(150).rows.tolist()))
    assert part.spread(0) is part.spread(200) is part.spread(999) is part
    settings = Settings(steps=4, looks=50)
    report = finetune(subject(run), splits(), settings, tmp_path / "out", bar=Bar)
    assert report["pictures"] == {"train": 300, "validation": 50, "test": 200}
    assert settings.pause == 1
    other = attrs.evolve(settings, looks=60, resume=True)
    with pytest.raises(BadRun, match="looks="):
        finetune(subject(run), splits(), other, tmp_path / "out", bar=Bar)


def test_it_learns_keeps_the_best_and_leaves_a_run(run, tmp_path):
    out = tmp_path / "out"
    report = finetune(subject(run), splits(), Settings(steps=60, lr=0.1, every=10), out, bar=Bar)
    assert report["before"]["test"]["accuracy"] < 0.5
    assert report["after"]["test"]["accuracy"] > 0.95
    assert (out / "run.toml").read_text() == (run / "run.toml").read_text()
    prior, head = (load_tensors(out / f"{role}.safetensors")[0] for role in ("prior", "head"))
    assert set(prior) == {"map.weight", "map.bias", "guess"}
    assert head["weight"].shape == (CLASSES, 12)
    said = read_metadata(out / "head.safetensors")
    assert said["classes"] == ["dark", "dim", "grey", "bright"]
    assert set(said["trained_on"]) == {"prior"}
    rows = read_rows(out / "metrics.jsonl")
    assert {row["part"] for row in rows} == {"finetune", "validation"}
    assert {"loss", "gen", "clf", "accuracy"} <= set(rows[-2])
    assert {p.name for p in out.glob("*.png")} == {"curves-finetune.png", "curves-validation.png"}
    json.dumps(report)


def test_the_learning_rate_is_a_tenth_and_constant(run, tmp_path):
    report = finetune(subject(run), splits(), Settings(steps=4, every=4), tmp_path / "out", bar=Bar)
    assert report["lr"] == pytest.approx(FakeConfig().train.lr / 10)
    rates = {row["lr"] for row in read_rows(tmp_path / "out" / "metrics.jsonl") if row["part"] == "finetune"}
    assert rates == {report["lr"]}


@pytest.mark.parametrize(("fall", "end"), [((1.5, 1.6), 50), ((1.4, 1.3), 70)])
def test_it_stops_when_validation_is_no_better_and_goes_back_to_the_best(run, tmp_path, monkeypatch, fall, end):
    measured = zip([0.2, 0.5, 0.9, 0.6, 0.9, 0.7, 0.1, 0.1], [3.0, 2.0, 1.5, *fall, 2.0, 2.0, 2.0], strict=False)
    monkeypatch.setattr(Watch, "measured", lambda self: next(measured))
    report = finetune(subject(run), splits(), Settings(steps=90, every=10, patience=3), tmp_path / "out", bar=Bar)
    assert report["steps"] == end  # 20 was the most accurate; as long as the loss falls it goes on
    assert report["best_step"] == 20
    assert [row["accuracy"] for row in report["validations"]] == [0.2, 0.5, 0.9, 0.6, 0.9, 0.7, 0.1, 0.1][
        : end // 10 + 1
    ]
    assert read_metadata(tmp_path / "out" / "checkpoints" / "best.safetensors")["step"] == 20
    best, _ = load_tensors(tmp_path / "out" / "checkpoints" / "best.safetensors")
    kept, _ = load_tensors(tmp_path / "out" / "prior.safetensors")
    assert all(torch.equal(best[f"prior.{name}"], x) for name, x in kept.items())


def test_ctrl_c_saves_and_resume_ends_where_an_unbroken_run_does(run, tmp_path, monkeypatch):
    settings = Settings(steps=40, lr=0.05, every=10)
    whole = finetune(subject(run), splits(noise=0.3), settings, tmp_path / "whole", bar=Bar)
    told = Watch.told

    def interrupting(self, step, row):
        told(self, step, row)
        if step == 25:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Watch, "told", interrupting)
    with pytest.raises(Interrupted):
        finetune(subject(run), splits(noise=0.3), settings, tmp_path / "broken", bar=Bar)
    monkeypatch.setattr(Watch, "told", told)
    with pytest.raises(BadRun, match="go on with --resume"):
        finetune(subject(run), splits(noise=0.3), settings, tmp_path / "broken", bar=Bar)
    other = attrs.evolve(settings, lr=0.06, resume=True)
    with pytest.raises(BadRun, match="was made with"):
        finetune(subject(run), splits(noise=0.3), other, tmp_path / "broken", bar=Bar)
    again = finetune(subject(run), splits(noise=0.3), attrs.evolve(settings, resume=True), tmp_path / "broken", bar=Bar)
    assert again == whole
    one, two = (load_tensors(tmp_path / name / "prior.safetensors")[0] for name in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("every", [None, 5])
def test_resume_with_more_steps_goes_on(run, tmp_path, every):
    settings = Settings(steps=10, lr=0.05, every=every)
    finetune(subject(run), splits(), settings, tmp_path / "out", bar=Bar)
    more = attrs.evolve(settings, steps=60, resume=True)
    assert finetune(subject(run), splits(), more, tmp_path / "out", bar=Bar)["validations"][-1]["step"] > 10
    with pytest.raises(BadRun, match="every="):
        finetune(subject(run), splits(), attrs.evolve(more, every=7), tmp_path / "out", bar=Bar)


def test_a_validation_loss_that_is_no_number_is_not_the_best(run, tmp_path, monkeypatch):
    measured = zip([0.5, 0.1, 0.1, 0.1, 0.1], [1.0, 2.0, 2.0, float("nan"), 2.0], strict=True)
    monkeypatch.setattr(Watch, "measured", lambda self: next(measured))
    report = finetune(subject(run), splits(), Settings(steps=90, every=1, patience=3), tmp_path / "out", bar=Bar)
    assert (report["steps"], report["best_step"]) == (3, 0)


def test_a_write_that_fails_leaves_the_metrics_as_they_were(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"part": "validation", "step": 9}\n')
    monkeypatch.setattr("zoo.files.sync", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Watch(None, None, Settings(), tmp_path).begin(4)
    assert path.read_text() == '{"part": "validation", "step": 9}\n'


def test_resume_without_anything_to_go_on_from_is_refused(run, tmp_path):
    with pytest.raises(BadRun, match="no whole checkpoint to go on from"):
        finetune(subject(run), splits(), Settings(steps=4, resume=True), tmp_path / "out", bar=Bar)


def test_several_masks_vote_at_the_end(run, tmp_path):
    fake = subject(run, causal=False)
    report = finetune(fake, splits(), Settings(steps=10, lr=0.1, masks=3, every=10), tmp_path / "out", bar=Bar)
    assert set(report["after"]["test"]) == {"accuracy", "loss", "votes"}
    assert report["masked_share"] == 0.25
    assert isinstance(batch_of(Classifier(fake, CLASSES)), Batch)

"""Fine-tuning a run's prior with a class head, until validation is no better.

Adam as in pre-training, a constant learning rate ten times lower, no average, no cosine ([1] appendix). The weights of
the best validation accuracy are kept, as [1] did; it ends when neither that nor the head's validation loss has been
better for a while: while a head learns the colours of 24 classes of colour and shape, its accuracy rests and its loss
falls.

Training is the zoo's own loop on one stage more, so it has its checkpoints, metrics and curves, and goes on after a
stop bit for bit. What it leaves is a run folder: the system with its fine-tuned prior, and the head beside it.

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from zoo.errors import BadRun
from zoo.files import atomic_text, atomic_write
from zoo.interfaces import Batch
from zoo.parts import Recipe
from zoo.probing.classifier import STAGE, Classifier
from zoo.probing.features import MASKED, Subject, vote
from zoo.probing.linear import accuracy
from zoo.probing.probe import Bar, objective
from zoo.probing.results import whole
from zoo.probing.splits import Splits
from zoo.probing.watch import JUDGED, Enough, Settings, Watch
from zoo.rng import Rng
from zoo.runs import RunFolder
from zoo.train.checkpoint import Checkpoint, Checkpoints
from zoo.train.engine import TorchEngine
from zoo.train.facts import check, facts
from zoo.train.feed import Feed
from zoo.train.loop import Job, train
from zoo.train.metrics import draw_curves
from zoo.train.options import TrainOptions
from zoo.train.stage import Stage

log = logging.getLogger("zoo.train")

SLOWER = 10.0
"""Times that the learning rate is lower than in pre-training. [1]"""
LOOKS = 128
"""Pictures of a validation for one of a batch, where the settings do not say."""


def finetune(subject: Subject, found: Splits, settings: Settings, out: Path, *, bar: Bar) -> dict[str, Any]:
    """Fine-tune, keep the best by validation, judge it, and leave a run folder; return the report.

    Raises:
        BadRun: `out` holds another fine-tuning, or one to go on from that is not there.
        Interrupted: SIGINT or SIGTERM came; a checkpoint of the last update is there.
        Diverged: the loss is not finite.
    """
    pretrained = subject.prior.config.train
    recipe = _recipe(pretrained, settings)
    looks = LOOKS * recipe.batch if settings.looks is None else settings.looks
    found = attrs.evolve(found, validation=found.validation.spread(looks))
    classifier = Classifier(subject, len(found.classes))
    job, watch = _job(classifier, found, settings, recipe, out)
    newest = _newest(job, settings, out)
    before = _before(classifier, found, settings)
    if newest is not None:
        job.engine.load(newest.folder)
    start, stopped = 0 if newest is None else newest.step, recipe.steps
    log.info(
        "%d updates of %d pictures at most, validation on %d every %d; at the end %d test pictures",
        recipe.steps, recipe.batch, len(found.validation), settings.pause, len(found.test),
    )  # fmt: skip
    watch.begin(start)
    job.stage.train()
    try:
        train(job, start)
    except Enough:
        stopped = watch.rows()[-1]["step"]
        draw_curves(out, STAGE)
    classifier.load(watch.path)
    best = max(watch.rows(), key=lambda row: row["accuracy"])
    report = {
        "run": str(subject.path), "card": subject.generator.card,
        "objective": objective(subject), "data": whole(found.train.data.uri),
        "classes": len(found.classes), "test": found.note, "seed": settings.seed, "lr": recipe.lr,
        "pretraining_lr": pretrained.lr, "batch": recipe.batch, "steps": stopped, "most_steps": recipe.steps,
        "best_step": best["step"], "masked_share": _share(subject),
        "pictures": {"train": len(found.train), "validation": len(found.validation), "test": len(found.test)},
        "before": before, "after": _judge(classifier, found, settings, bar),
        "validations": [{key: row[key] for key in ("step", "accuracy", "loss")} for row in watch.rows()],
    }  # fmt: skip
    draw_curves(out, JUDGED)
    _keep(classifier, report, found, out)
    return report


def _share(subject: Subject) -> float | None:
    return getattr(subject.prior.config, "mask", MASKED) if subject.masked else None


def _recipe(pretrained: Recipe, settings: Settings) -> Recipe:
    """Return the pre-training's recipe as [1] changes it."""
    lr = settings.lr or pretrained.lr / SLOWER
    return attrs.evolve(
        pretrained, lr=lr, schedule="constant", warmup=0, decay_steps=None, ema=None, accumulate=1,
        batch=settings.batch or pretrained.batch, steps=settings.steps,
    )  # fmt: skip


def _job(
    classifier: Classifier, found: Splits, settings: Settings, recipe: Recipe, out: Path
) -> tuple[Job, Watch]:  # fmt: skip
    """Return what the loop trains, and what watches it."""
    watch = Watch(classifier, found, settings, out)
    engine = TorchEngine(TrainOptions(model=str(classifier.subject.path)), device=classifier.base.device)
    stage = Stage(classifier, STAGE)
    engine.prepare(stage, recipe, steps=recipe.steps)
    part = found.train

    def read(rows: list[int], rng: Rng) -> Batch:
        return part.data.read(part.rows[rows].tolist(), rng)

    job = Job(
        folder=out,
        generator=classifier,
        stage=stage,
        engine=engine,
        recipe=recipe,
        feed=Feed(read=read, length=len(part), batch=recipe.batch, seed=settings.seed, world=engine.world),
        seed=settings.seed,
        shown=part.data,
        checkpoints=Checkpoints(out / "checkpoints" / STAGE, keep=1),
        facts=facts(
            run=classifier.subject.prints, data=part.data.fingerprint, rows=len(part), seed=settings.seed,
            batch=recipe.batch, lr=recipe.lr, looks=len(found.validation),
            **({} if settings.every is None else {"every": settings.every}),
        ),
        save_every=settings.pause,
        sample_every=0,
        told=watch.told,
    )  # fmt: skip
    return job, watch


def _newest(job: Job, settings: Settings, out: Path) -> Checkpoint | None:
    """Return the checkpoint to go on from; None where there is to be none.

    Raises:
        BadRun: there is a fine-tuning already, or none to go on from, or one of other settings.
    """
    newest = job.checkpoints.newest()
    if not settings.resume:
        if newest is not None or (out / "run.toml").exists():
            raise BadRun(f"{out} holds a fine-tuning already; go on with --resume, or choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        return None
    if newest is None:
        raise BadRun(f"{out} has no whole checkpoint to go on from; leave --resume out")
    check(newest, job.facts, f"{out}: the checkpoint")
    return newest


def _before(classifier: Classifier, found: Splits, settings: Settings) -> dict[str, dict[str, float]]:
    """Return what `_judge` would find of the head of zeros that there is at first: it tells of all the first class."""
    said = {}
    for name, part in (("validation", found.validation), ("test", found.test)):
        share = float(np.mean(part.labels() == 0))
        said[name] = {"accuracy": share, "loss": math.log(len(found.classes))}
        if _masks(classifier, settings) > 1:
            said[name]["votes"] = share
    return said


def _masks(classifier: Classifier, settings: Settings) -> int:
    return settings.masks if classifier.subject.masked else 1


def _judge(classifier: Classifier, found: Splits, settings: Settings, bar: Bar) -> dict[str, dict[str, float]]:
    """Return accuracies on validation and test pictures; of several masks the first one's, and their vote's."""
    masks = _masks(classifier, settings)
    said = {}
    with bar(len(found.validation) + len(found.test), "judging", "picture") as progress:
        for name, part in (("validation", found.validation), ("test", found.test)):
            told = classifier.tell(part, masks=masks, seed=settings.seed, advance=progress.update)
            said[name] = {"accuracy": told.accuracy, "loss": told.loss}
            if masks > 1:
                voted = vote(told.classes, part.rows, settings.seed, len(found.classes))
                said[name]["votes"] = accuracy(voted, told.truth)
    return said


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return a report as lines to print."""
    n, before, after = report["pictures"], report["before"], report["after"]
    text = [
        f"{report['run']}: {report['card']}, {report['objective']}, {report['data']}, {report['classes']} classes",
        f"{report['steps']} updates of {report['batch']} at learning rate {report['lr']:g} (pre-training: "
        f"{report['pretraining_lr']:g}) on {n['train']} pictures; the best of {n['validation']} validation pictures "
        f"after {report['best_step']}",
    ]
    for split, where in (("validation", f"{n['validation']} pictures"), ("test", f"{n['test']}: {report['test']}")):
        text += [
            f"{split:<10} {kind:<8} {before[split][kind]:>7.1%} -> {after[split][kind]:.1%}  ({where})"
            for kind in ("accuracy", "votes")
            if kind in after[split]
        ]
    return text


def _keep(classifier: Classifier, report: Mapping[str, Any], found: Splits, out: Path) -> None:
    """Make the folder a run: what it is, the frozen parts, the fine-tuned prior, and the head beside it."""
    source = RunFolder(classifier.subject.path)
    roles = [role for role in classifier.base.reads("prior") if source.finished(role)]
    for role in roles:
        with atomic_write(out / source.part_path(role).name) as beside:
            shutil.copyfile(source.part_path(role), beside)
    atomic_text(out / "run.toml", (source.path / "run.toml").read_text(encoding="utf-8"))
    folder = RunFolder(out)
    said = {name: report[name] for name in ("seed", "data", "run")} | {"steps": report["best_step"]}
    frozen = {role: folder.fingerprint(role) for role in roles}
    folder.save_part("prior", classifier.prior, trained_on=frozen, extra=said)
    trained_on = {"prior": folder.fingerprint("prior")}
    folder.save_part("head", classifier.head, trained_on=trained_on, extra={**said, "classes": list(found.classes)})

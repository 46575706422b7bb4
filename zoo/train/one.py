"""One stage of a training command: fit what is fitted, train what has a loss, write the finished part."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from torch import nn

from zoo import plugins, registry
from zoo.errors import BadRun, NotReady, PartMismatch, ZooError
from zoo.nn.residual import checkpoint_branches
from zoo.parts import Recipe
from zoo.runs import RunFolder
from zoo.train.checkpoint import Checkpoints
from zoo.train.embedded import Embedded, fact_of, open_embeddings
from zoo.train.facts import check, facts
from zoo.train.feed import AHEAD, Feed
from zoo.train.initial import Initial, begin_from
from zoo.train.loop import Job, train
from zoo.train.metrics import Metrics, read_rows
from zoo.train.options import TrainOptions
from zoo.train.reduction import total_sent
from zoo.train.stage import Stage, fitted_roles, key_of, recipe_of, trained_roles
from zoo.train.store import open_store
from zoo.train.world import agree, first
from zoo.weights import file_order

log = logging.getLogger("zoo.train")

_ANY_SIZE = 32


@attrs.define
class Training:
    """What training hooks are given."""

    folder: Path
    config: Any
    stage: str = ""
    """The part being trained now."""


@attrs.frozen(kw_only=True, eq=False)
class Setting:
    """All that the stages of one command share."""

    options: TrainOptions
    folder: RunFolder
    generator: Any
    config: Any
    engine: Any
    seed: int
    data: str
    training: Training
    pictures: bool = True
    """Whether there is room to draw samples while training."""
    initial: Initial | None = None
    """Where weights come from; None: all are new."""

    def told(self, step: int, row: Mapping[str, Any]) -> None:
        """Tell the hooks of an update; one that fails is reported once and stops nothing."""
        list(plugins.installed().call("zoo_train_step", run=self.training, step=step, metrics=row))


def train_stage(setting: Setting, part: str) -> None:
    """Train one stage to its end, and write its parts into the run folder.

    Raises:
        NotReady: a part it is trained on has no weights.
        BadRun: its checkpoint was made with other settings.
        ConfigError: the batch may not be split.
    """
    options, generator, engine = setting.options, setting.generator, setting.engine
    if not trained_roles(generator, part):
        _fit(setting, part, _open(setting, "train", Recipe()))
        return
    recipe = recipe_for(generator, part, options)
    data = _open(setting, "train", recipe)
    _check_ready(setting, part)
    _fit(setting, part, data)
    prints = _frozen_prints(setting, part)
    stage = Stage(generator, part)
    checkpoint_branches(stage, options.recompute)
    engine.prepare(stage, recipe, steps=recipe.steps)
    for role in generator.reads(part):
        if isinstance(generator.parts[role], nn.Module):
            generator.parts[role].to(engine.device)
    job = _job(setting, stage, recipe, data, prints)
    agree(engine.world, {"stage": part, **job.facts})
    begun = setting.initial is not None and begin_from(job, setting.initial)
    given = setting.initial is not None and not setting.initial.record["parts"].keys().isdisjoint(stage.roles)
    train(job, _resume(job, given) if options.resume or begun else 0)
    _finish(setting, stage, recipe, prints)


def _job(setting: Setting, stage: Stage, recipe: Recipe, data: Any, prints: Mapping[str, str]) -> Job:
    options, engine, part = setting.options, setting.engine, stage.part
    stored = (setting.folder.path / "store", setting.generator, part)
    sizes: Any = {"samples": recipe.steps * recipe.batch, "device": engine.device, "world": engine.world}
    embeddings = open_embeddings(*stored, data, prints, given=options.embeddings, **sizes)
    data = data if embeddings is None else Embedded(data, embeddings)
    store = open_store(*stored, data, prints, **sizes)
    source = data if store is None else store if embeddings is None else Embedded(store, embeddings)
    feed = Feed(
        read=source.read,
        length=len(source),
        batch=recipe.batch,
        seed=setting.seed,
        world=engine.world,
        pieces=recipe.accumulate,
        ahead=0 if engine.device.type == "cpu" else AHEAD,
    )
    return Job(
        folder=setting.folder.path,
        generator=setting.generator,
        stage=stage,
        engine=engine,
        recipe=recipe,
        feed=feed,
        seed=setting.seed,
        shown=_shown(setting, data, recipe),
        checkpoints=checkpoints_of(setting, part),
        facts=facts(
            **early_facts(setting.generator, part, options, setting.seed),
            data=data.fingerprint,
            trained_on=prints,
            embeddings=fact_of(embeddings),
        ),
        save_every=options.save_every or min(500, -(-recipe.steps // 10)),
        sample_every=_sample_every(setting, recipe),
        told=setting.told,
    )


def _sample_every(setting: Setting, recipe: Recipe) -> int:
    """Return the updates between two sample pictures, 0 for none."""
    said = setting.options.sample_every
    if not setting.pictures:
        return 0
    return -(-recipe.steps // 4) if said is None else said


def _resume(job: Job, given: bool) -> int:
    """Load the newest whole checkpoint into the engine; return the updates it has behind it, 0 without one.

    Raises:
        BadRun: there is none, and the weights were `given`: new ones must not stand in for them.
    """
    found = first(job.engine.world, job.checkpoints.newest)
    if found is None and given:
        raise BadRun(f"{job.folder}: no checkpoint of '{job.stage.part}' is whole any more: type the command again, "
                     "which goes back to the weights of --init")  # fmt: skip
    if found is None:
        return 0
    wanted = {**job.facts, **_configs(job.generator, job.stage.part, job.recipe)}
    check(found, wanted, f"{job.folder}: the checkpoint of '{job.stage.part}'")
    job.engine.load(found.folder)
    if found.step:
        log.info("%s: going on from step %d", job.stage.part, found.step)
    return found.step


def checkpoints_of(setting: Setting, part: str) -> Checkpoints:
    """Return the checkpoints of a stage."""
    return Checkpoints(setting.folder.path / "checkpoints" / part, setting.options.keep)


def size_of(config: Any, model: str) -> int:
    """Return the side of a system's pictures, pixels; any side for a part that is fitted on captions.

    Raises:
        PartMismatch: it has none, being a part that pictures do not reach alone.
    """
    size = getattr(config, "image_size", None if hasattr(config, "train") else _ANY_SIZE)
    if size is None:
        raise PartMismatch(f"'{model}' has no picture size of its own: train it inside a system")
    return size


def _open(setting: Setting, split: str, recipe: Recipe) -> Any:
    size = size_of(setting.config, setting.options.model)
    return registry.open_dataset(setting.data, split=split, size=size, transform=recipe.transform)


def early_facts(generator: Any, part: str, options: TrainOptions, seed: int) -> dict[str, Any]:
    """Return what a checkpoint must agree about, as far as it is known before anything is opened; configs as such."""
    configs = _configs(generator, part, recipe_for(generator, part, options))
    return {"seed": seed, "precision": options.precision, "reducer": options.reducer, **configs}


def _configs(generator: Any, part: str, recipe: Recipe) -> dict[str, Any]:
    """Return the configs among them."""
    return {"recipe": recipe, "config": {r: generator.parts[r].config for r in trained_roles(generator, part)}}


def recipe_for(generator: Any, part: str, options: TrainOptions) -> Recipe:
    """Return the stage's recipe with what the command line says in its place."""
    said = {name: getattr(options, name) for name in ("steps", "batch", "accumulate")}
    return attrs.evolve(recipe_of(generator, part), **{k: x for k, x in said.items() if x is not None})


def _shown(setting: Setting, data: Any, recipe: Recipe) -> Any:
    """Return the pictures that samples show: not those trained on, where the data has others."""
    try:
        held = _open(setting, "validation", recipe)
    except ZooError:
        return data
    return held if len(held) else data


def _check_ready(setting: Setting, part: str) -> None:
    """Refuse a stage whose frozen parts have no weights, before any is fitted.

    Raises:
        NotReady: names the command that trains or imports it.
    """
    generator, model, out = setting.generator, setting.options.model, setting.folder.path
    for role in generator.reads(part):
        if generator.ready[role] or hasattr(generator.parts[role], "fit"):
            continue
        owner = next((name for name, roles in generator.stages.items() if role in roles), None)
        remedy = f"python scripts/train.py --model {model} --part {owner} --out {out}"
        if owner is None:  # no stage trains it
            remedy = f"zoo import {model} PATH --part {role} --out {out}"
        raise NotReady(f"'{part}' is trained on '{role}', which has no weights yet; type: {remedy}")


def _fit(setting: Setting, part: str, data: Any) -> None:
    """Fit the stage's parts that are fitted in one go and are not ready, each a stage of one step."""
    generator = setting.generator
    for role in fitted_roles(generator, part):
        if generator.ready[role] or role in trained_roles(generator, part):
            continue
        _refuse_other_ids(setting, role)
        log.info("%s: fitting on %s", role, setting.data)
        world, module = setting.engine.world, generator.parts[role]
        state = first(world, partial(_fit_one, setting, role, module, data))
        if world.rank > 0:
            module.load_state_dict(state)
        generator.mark_ready(role)


def _refuse_other_ids(setting: Setting, role: str) -> None:
    """Refuse to fit a part anew that one with weights of its own reads: its ids would mean something else.

    Raises:
        NotReady: says what to import.
    """
    generator, folder, model = setting.generator, setting.folder, setting.options.model
    for other in generator.parts:
        if role in generator.reads(other) and folder.finished(other):
            raise NotReady(
                f"'{other}' has weights and '{role}', which it reads, has none, and fitted anew it would have other "
                f"ids; type: zoo import {model} PATH --part {role} --out {folder.path}"
            )


def _fit_one(setting: Setting, role: str, module: Any, data: Any) -> Mapping[str, Any]:
    """Fit a part and write it; return its state, for the other processes."""
    began = time.perf_counter()
    module.fit(data, seed=setting.seed)
    metrics = Metrics(setting.folder.path, role, 0)
    metrics.write(1, {"loss": 0.0, "seconds": time.perf_counter() - began})
    metrics.close()
    setting.folder.save_part(role, module, trained_on={}, extra={"data": setting.data})
    return module.state_dict() if setting.engine.world.size > 1 else {}


def _frozen_prints(setting: Setting, part: str) -> dict[str, str]:
    """Return the fingerprints of the parts this stage reads, each saved in the run folder."""
    generator, folder, prints = setting.generator, setting.folder, {}
    for role in generator.reads(part):
        module = generator.parts[role]
        if isinstance(module, nn.Module) and module.state_dict():
            prints[role] = first(setting.engine.world, partial(_kept, folder, role, module))
    return prints


def _kept(folder: RunFolder, role: str, module: nn.Module) -> str:
    """Have a part in the run folder; return its fingerprint."""
    if not folder.finished(role):
        folder.save_part(role, module, trained_on={}, extra={})
    return folder.fingerprint(role)


def _finish(setting: Setting, stage: Stage, recipe: Recipe, prints: Mapping[str, str]) -> None:
    """Write the trained parts, with the averaged weights where there is an average; they train no more.

    The part that the stage is named after comes last, and says with which of the others it has learnt.
    """
    said = {"steps": recipe.steps, "batch": recipe.batch, "seed": setting.seed, "data": setting.data}
    folder, world, weights = setting.folder, setting.engine.world, setting.engine.weights()
    beside = [role for role in stage.roles if role != stage.part]
    for role in sorted(stage.roles, key=lambda role: role == stage.part):
        prefix = f"{key_of(role)}."
        mine = {name.removeprefix(prefix): x for name, x in weights.items() if name.startswith(prefix)}
        if world.rank == 0:
            module, trained_on = setting.generator.parts[role], dict(prints)
            if role == stage.part:
                trained_on |= {other: folder.fingerprint(other) for other in beside}
            folder.save_part(role, module, trained_on=trained_on, extra=said, tensors=mine)
        else:
            for _, tensor in file_order(mine):
                tensor.fetch()
    world.barrier()
    if sent := total_sent(row for row in read_rows(folder.path / "metrics.jsonl") if row.get("part") == stage.part):
        log.info("%s: each process sent %.4g MB of gradients between copies of the model", stage.part, sent / 1e6)
    log.info("%s: done, %s", stage.part, folder.part_path(stage.part))

"""One training command: builds model and engine from the options, then trains the stages in order."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from zoo import plugins, registry
from zoo.catalogue import catalogue
from zoo.config import without_none
from zoo.errors import BadRun, ConfigError, PartMismatch, UnknownName
from zoo.resolution import Node, dump, is_run, resolve_tree
from zoo.runs import RunFolder, versions
from zoo.specs import locate
from zoo.train import finetuning, initial
from zoo.train.allocator import keep_freed_memory
from zoo.train.checkpoint import Checkpoints
from zoo.train.copies import machine
from zoo.train.embedded import check_asked
from zoo.train.facts import check
from zoo.train.feed import check_shares
from zoo.train.group import launched
from zoo.train.initial_checks import check as check_initial
from zoo.train.one import Setting, Training, checkpoints_of, early_facts, recipe_for, size_of, train_stage
from zoo.train.options import TrainOptions
from zoo.train.room import check_room
from zoo.train.stage import trained_roles
from zoo.train.world import agree, first, seen

log = logging.getLogger("zoo.train")


def run(options: TrainOptions) -> RunFolder:
    """Train what the options name, and return the run folder.

    Raises:
        ZooError: anything the user can mend; the text says how.
        Interrupted, Diverged: see `zoo.train.loop.train`.
    """
    out = _out(options)
    engine = make_engine(options)  # here the processes meet, so that what follows is said once
    keep_freed_memory(sharded=engine.zero == 3)
    node, config, seed, data = _resolve(options, out)
    agree(engine.world, {
        "options": options, "config": without_none(dump(config, node)), "seed": seed, "data": data,
        "engine_config": _text(options.engine_config), "versions": versions(node),
    })  # fmt: skip
    outline = registry.build_system(node, config, seed=seed, device="meta")
    stages = _check_part(outline, options)
    first(engine.world, lambda: check_asked(options.embeddings, outline, stages, out))
    start = first(engine.world, lambda: initial.find(options, out, outline, stages))
    if start is not None:
        node, config, seed, data = _resolve(options, out, start)
        outline = registry.build_system(node, config, seed=seed, device="meta")
        first(engine.world, lambda: check_initial(start, node, outline, stages, out))
    first(engine.world, lambda: _check_stages(outline, stages, options, out, seed, engine))
    said = None if start is None else start.record
    first(engine.world, lambda: RunFolder.create(out, node, config, seed=seed, data=data, init=said) and None)
    folder = RunFolder(seen(out / "run.toml").parent)
    setting = Setting(
        options=options, folder=folder, generator=outline, config=config, engine=engine, seed=seed, data=data,
        training=Training(folder.path, config), initial=start,
    )  # fmt: skip
    todo = first(engine.world, lambda: _left(setting, stages))
    if todo:
        _train_all(setting, node, todo)
    for part in stages if start is not None else ():  # of those done before, one may not be measured yet
        if part in todo:
            continue
        first(engine.world, partial(finetuning.after, setting, node, part))
    return folder


def make_engine(options: TrainOptions) -> Any:
    """Return the engine the options ask for.

    Raises:
        UnknownName: no such engine is installed.
        ConfigError: the engine cannot do what the options ask.
    """
    name = ("deepspeed" if launched() else "torch") if options.engine == "auto" else options.engine
    if options.reducer is not None:
        registry.reducer_config(options.reducer)
    try:
        spec = registry.engine(name)
    except UnknownName as error:
        if name != "deepspeed":
            raise
        raise ConfigError(f"{error}: no installed plugin provides it; leave --engine out for one process") from None
    return locate(spec.build)(options)


def _text(path: Path | None) -> str | None:
    return None if path is None else path.read_text(encoding="utf-8")


def _out(options: TrainOptions) -> Path:
    if options.out is not None:
        return options.out
    return Path(options.model) if is_run(options.model) else Path("runs") / options.model


def _resolve(options: TrainOptions, out: Path, start: initial.Initial | None = None) -> tuple[Node, Any, int, str]:
    """Return the tree of parts, its config, the seed and the data; a run that was begun goes on with its own.

    Of what training starts from, parts that are taken stand in their places, and those to be trained are not done.
    """
    begun = RunFolder(out) if (out / "run.toml").is_file() else None
    same = begun is not None and _card(options.model) == begun.card
    source = str(out) if same else options.model
    taken = {} if start is None else start.nodes()
    node, config = resolve_tree(source, options.set, nodes=taken)
    seed = options.seed if options.seed is not None else begun.data["seed"] if begun else 0
    data = options.data or (begun.data["data"] if begun else getattr(config, "data", None)) or "shapes"
    size = size_of(config, options.model)
    classes = registry.open_dataset(data, split="train", size=size).classes
    if classes:
        node, config = resolve_tree(source, options.set, nodes=taken, classes=len(classes))
    for role, part in initial.nodes_of(node).items():
        if start is not None and role in start.files:
            part.source = None
    return node, config, seed, data


def _card(model: str) -> str:
    """Return the card's own name, or that of a run folder."""
    return RunFolder(model).card if is_run(model) else catalogue().get(model).name


def _check_part(generator: Any, options: TrainOptions) -> tuple[str, ...]:
    stages = tuple(generator.stages)
    if options.part is None:
        if not stages:
            raise PartMismatch(f"'{options.model}' has no part that is trained")
        return stages
    if options.part not in stages:
        raise UnknownName(f"'{options.model}' has no such part to train: part", options.part, stages,
                          f"it has {', '.join(stages)}")  # fmt: skip
    return (options.part,)


def _check_stages(
    outline: Any, stages: tuple[str, ...], options: TrainOptions, out: Path, seed: int, engine: Any
) -> None:
    """Refuse, before anything is written, a recipe that the engine cannot follow and other runs' checkpoints.

    An engine with settings of its own has a `check(recipe)`, which raises ConfigError.
    """
    for part in stages:
        done = all((out / f"{role}.safetensors").is_file() for role in outline.stages[part])
        if done or not trained_roles(outline, part):
            continue
        recipe = recipe_for(outline, part, options)
        check_shares(recipe.batch, engine.world.size, recipe.accumulate)
        getattr(engine, "check", lambda _: None)(recipe)
        found = Checkpoints(out / "checkpoints" / part).newest(deep=False) if options.resume else None
        if found is not None and (out / "run.toml").is_file():
            begun, asked = RunFolder(out).card, _card(options.model)
            if begun != asked:
                raise BadRun(f"{out} was begun with model '{begun}', not '{asked}'; choose another --out")
            check(found, early_facts(outline, part, options, seed), f"{out}: the checkpoint of '{part}'")


def _left(setting: Setting, stages: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stages to train; those that are done are passed over.

    Raises:
        BadRun: all are done, or one has checkpoints, and `--resume` was not given; or one would lose its weights.
    """
    folder, resume = setting.folder, setting.options.resume
    done = [part for part in stages if all(map(folder.finished, setting.generator.stages[part]))]
    left = tuple(part for part in stages if part not in done)
    if not left and not resume:
        paths = " ".join(path for part in done for path in _files(setting, part))
        raise BadRun(
            f"{folder.path}: {', '.join(done)} trained already; sample it with `zoo sample {folder.path} ...`, "
            f"choose another --out, or to train again: rm -r {paths} {folder.path / 'checkpoints'}"
        )
    for part in done:
        log.info("%s: trained already", part)
    for part in left:
        roles = setting.generator.stages[part]
        if part in roles and folder.finished(part):  # imported, say: what it reads is missing
            missing = ", ".join(f"'{role}'" for role in roles if not folder.finished(role))
            raise BadRun(f"{folder.part_path(part)} has weights, and {missing}, which it reads, has none: import it, "
                         f"or to train both: rm {' '.join(_files(setting, part))}")  # fmt: skip
        place = checkpoints_of(setting, part).folder
        if not resume and place.is_dir() and any(place.glob("step-*")):
            raise BadRun(f"{folder.path} has checkpoints of '{part}': add --resume to go on from the newest, "
                         f"or to begin again: rm -r {place}")  # fmt: skip
    return left


def _files(setting: Setting, part: str) -> list[str]:
    """Return the weights that a stage has written; one that trains nothing has fitted its parts."""
    roles = trained_roles(setting.generator, part) or setting.generator.stages[part]
    return [str(setting.folder.part_path(role)) for role in roles if setting.folder.finished(role)]


def _train_all(setting: Setting, node: Node, stages: tuple[str, ...]) -> None:
    """Train the stages in order, with the hooks around them, which the first process calls."""
    training = setting.training
    call = plugins.installed().call if setting.engine.world.rank == 0 else lambda *_, **__: ()
    training.stage = stages[0]
    list(call("zoo_train_start", run=training))
    try:
        for part in stages:
            training.stage = part
            pictures = not trained_roles(setting.generator, part) or _check_room(setting, node, part)
            first(setting.engine.world, partial(finetuning.before, setting, node, part))
            train_stage(attrs.evolve(setting, generator=_built(setting, node, part), pictures=pictures), part)
            first(setting.engine.world, partial(finetuning.after, setting, node, part))
    finally:
        list(call("zoo_train_end", run=training))


def _check_room(setting: Setting, node: Node, part: str) -> bool:
    """Refuse a stage that will not fit into memory, before any of it is allocated; return whether pictures will."""
    options, engine = setting.options, setting.engine
    return check_room(
        node, setting.config, part, recipe_for(setting.generator, part, options), options, engine.world,
        zero=engine.zero, per_node=machine(engine.world.size, options.per_node), here=machine(engine.world.size, None),
        device=engine.device,
    )  # fmt: skip


def _built(setting: Setting, node: Node, part: str) -> Any:
    """Return the system for one stage: the trained parts built by the engine, those read whole, others on meta.

    Built anew for each stage, so that a part that was trained sharded is whole when the next is trained on it.
    """
    outline, engine = setting.generator, setting.engine
    tops = {*outline.stages[part], *outline.reads(part)}
    used = {role for role in outline.parts if any(f"{role}.".startswith(f"{top}.") for top in tops)}
    trained = trained_roles(outline, part)
    generator = registry.build_system(
        node, setting.config, seed=setting.seed, trained=trained, building=engine.building(), used=used
    )
    # What the first process finds: it may have written a part before another looks.
    setting.folder.load_parts(generator, first(engine.world, lambda: set(filter(setting.folder.finished, used))))
    return generator

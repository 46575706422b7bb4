"""One training command: builds model and engine from the options, then trains the stages in order."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from zoo import plugins, registry
from zoo.catalogue import catalogue
from zoo.errors import BadRun, ConfigError, PartMismatch, UnknownName
from zoo.resolution import Node, is_run, resolve_tree
from zoo.runs import RunFolder, load_sources
from zoo.specs import locate
from zoo.train.allocator import keep_freed_memory
from zoo.train.one import Setting, Training, checkpoints_of, size_of, train_stage
from zoo.train.options import TrainOptions

log = logging.getLogger("zoo.train")


def run(options: TrainOptions) -> RunFolder:
    """Train what the options name, and return the run folder.

    Raises:
        ZooError: anything the user can mend; the text says how.
        Interrupted, Diverged: see `zoo.train.loop.train`.
    """
    keep_freed_memory()
    out = _out(options)
    node, config, seed, data = _resolve(options, out)
    engine = make_engine(options)
    generator = registry.build_system(node, config, seed=seed, trained=_roots(node), building=engine.building())
    stages = _check_part(generator, options)
    folder = RunFolder.create(out, node, config, seed=seed, data=data)
    load_sources(node, generator)
    folder.load_parts(generator)
    setting = Setting(
        options=options, folder=folder, generator=generator, config=config, engine=engine, seed=seed, data=data,
        training=Training(folder.path, config),
    )  # fmt: skip
    todo = _left(setting, stages)
    if todo:
        _train_all(setting, todo)
    return folder


def make_engine(options: TrainOptions) -> Any:
    """Return the engine the options ask for.

    Raises:
        UnknownName: no such engine is installed.
        ConfigError: the engine cannot do what the options ask.
    """
    name = "torch" if options.engine == "auto" else options.engine
    if options.reducer is not None:
        registry.reducer(options.reducer)
    try:
        spec = registry.engine(name)
    except UnknownName as error:
        if name != "deepspeed":
            raise
        raise ConfigError(f"{error}: no installed plugin provides it; leave --engine out for one process") from None
    return locate(spec.build)(options)


def _out(options: TrainOptions) -> Path:
    if options.out is not None:
        return options.out
    return Path(options.model) if is_run(options.model) else Path("runs") / options.model


def _resolve(options: TrainOptions, out: Path) -> tuple[Node, Any, int, str]:
    """Return the tree of parts, its config, the seed and the data; a run that was begun goes on with its own."""
    begun = RunFolder(out) if (out / "run.toml").is_file() else None
    same = begun is not None and _card(options.model) == begun.card
    source = str(out) if same else options.model
    node, config = resolve_tree(source, options.set)
    seed = options.seed if options.seed is not None else begun.data["seed"] if begun else 0
    data = options.data or (begun.data["data"] if begun else getattr(config, "data", None)) or "shapes"
    size = size_of(config, options.model)
    classes = registry.open_dataset(data, split="train", size=size).classes
    if classes:
        node, config = resolve_tree(source, options.set, classes=len(classes))
    return node, config, seed, data


def _card(model: str) -> str:
    """Return the card's own name, or that of a run folder."""
    return RunFolder(model).card if is_run(model) else catalogue().get(model).name


def _roots(node: Node) -> tuple[str, ...]:
    """Return the roles that may be trained: those that stand directly in the system."""
    return tuple(node.children) if node.interface == "generator" else (node.interface,)


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


def _left(setting: Setting, stages: tuple[str, ...]) -> tuple[str, ...]:
    """Return the stages to train; those that are done are passed over.

    Raises:
        BadRun: all are done, or one has checkpoints, and `--resume` was not given.
    """
    folder, resume = setting.folder, setting.options.resume
    done = [part for part in stages if all(map(folder.finished, setting.generator.stages[part]))]
    left = tuple(part for part in stages if part not in done)
    if not left and not resume:
        paths = " ".join(str(folder.part_path(part)) for part in done)
        raise BadRun(
            f"{folder.path}: {', '.join(done)} trained already; sample it with `zoo sample {folder.path} ...`, "
            f"choose another --out, or to train again: rm -r {paths} {folder.path / 'checkpoints'}"
        )
    for part in done:
        log.info("%s: trained already", part)
    for part in left:
        place = checkpoints_of(setting, part).folder
        if not resume and place.is_dir() and any(place.glob("step-*")):
            raise BadRun(f"{folder.path} has checkpoints of '{part}': add --resume to go on from the newest, "
                         f"or to begin again: rm -r {place}")  # fmt: skip
    return left


def _train_all(setting: Setting, stages: tuple[str, ...]) -> None:
    """Train the stages in order, with the hooks around them."""
    call, training = plugins.installed().call, setting.training
    training.stage = stages[0]
    list(call("zoo_train_start", run=training))
    try:
        for part in stages:
            training.stage = part
            train_stage(setting, part)
    finally:
        list(call("zoo_train_end", run=training))

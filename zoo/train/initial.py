"""Starting from weights that exist: `--init RUN`, or `--init FILE` for one part.

Of a run, each part that the command trains starts from the run's part of the same role, and every other finished part
is taken as it is, with its settings: the codebook and the tokenizer above all, so that codes and ids mean what the
weights have learnt. What the run has trained on a part that changes now is left out.

The weights enter as a checkpoint of no updates, which the engine takes up like any other: whatever it is, however it
shards and however many processes there are. So `--resume` never starts over, and asks for the source of those parts
only that have no checkpoint yet.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor

from zoo.errors import BadRun, ConfigError
from zoo.resolution import Node
from zoo.runs import RunFolder, full_role
from zoo.train.checkpoint import Checkpoints
from zoo.train.stage import key_of, trained_roles
from zoo.train.world import World, first
from zoo.weights import Lazy, TensorFile, read_metadata, sha256, stream_tensors

if TYPE_CHECKING:
    from zoo.train.loop import Job
    from zoo.train.options import TrainOptions

log = logging.getLogger("zoo.train")


@attrs.frozen(kw_only=True)
class Initial:
    """Where the weights of one command come from."""

    path: str
    """Where it is now."""
    files: Mapping[str, Path]
    """Role of a part that is trained and has no checkpoint yet -> the weights it starts from."""
    taken: tuple[str, ...] = ()
    """Roles that are taken as they are."""
    record: Mapping[str, Any]
    """What run.toml says of it: "path" as given, and "parts", role -> sha256 of the weights it starts from."""
    known: tuple[str, ...] = ()
    """Roles whose settings an earlier command of the same run has compared."""

    @property
    def run(self) -> RunFolder | None:
        """The run that it is; None for a file."""
        return RunFolder(self.path) if (Path(self.path) / "run.toml").is_file() else None

    def nodes(self) -> dict[str, Node]:
        """Return the trees of the parts that are taken, the outermost, by role."""
        if self.run is None or not self.taken:
            return {}
        theirs = nodes_of(self.run.node())
        return {r: theirs[r] for r in self.taken if r.rpartition(".")[0] not in self.taken}


def nodes_of(root: Node) -> dict[str, Node]:
    """Return a tree's parts by role."""
    named = {full_role(root, role): part for role, part in root.walk()}
    return {role: part for role, part in named.items() if role}


def find(options: TrainOptions, out: Path, outline: Any, stages: tuple[str, ...]) -> Initial | None:
    """Return where the command's weights come from; None where they are new.

    Args:
        options: `init`, `set`.
        out: the run folder, if it was begun; what it was begun from it goes on from.
        outline: the system, on the meta device.
        stages: those the command trains.

    Raises:
        BadRun: the source is needed and missing, has changed, has no weights for what is trained, or is not what the
            run was begun from.
        ConfigError: a file, and several parts that are trained.
    """
    recorded = RunFolder(out).data.get("init", {}) if (out / "run.toml").is_file() else {}
    given = options.init or recorded.get("path")
    if given is None:
        return None
    before: dict[str, str] = dict(recorded.get("parts", {}))
    was = _recorded_place(recorded["path"], out) if recorded else None
    source = Path(given) if options.init is not None or was is None else was
    path, same_place = str(source), was is not None and source.resolve() == was.resolve()
    if source.resolve() == out.resolve():
        raise ConfigError(f"--init {path} is the run that would be written; choose another --out")
    if recorded and source.exists() and not same_place and not _same_weights(source, before):
        raise BadRun(f"{out} was begun with --init {recorded['path']}, not {path}; choose another --out")
    trained = {role for part in stages for role in trained_roles(outline, part)}
    wanted = {
        part: [role for role in trained_roles(outline, part) if options.init is not None or role in before]
        for part in stages
        if not _begun(out, outline, part)
    }
    wanted = {part: roles for part, roles in wanted.items() if roles}
    if not wanted:
        if recorded:
            if not source.exists():
                log.info("--init %s is not there, and not needed: %s has weights of its own", path, out)
            return Initial(path=path, files={}, record=recorded)
        raise BadRun(f"--init {path}: {out} has weights of its own for {', '.join(stages)}; choose another --out")
    taken: tuple[str, ...] = ()
    if (source / "run.toml").is_file():
        files = _files(RunFolder(path), path, wanted, before)
        taken = _taken(RunFolder(path), out, outline, trained, options.set)
    elif source.is_file():
        files = _file(source, wanted)
    else:
        lost = "" if not before else f"; {out} was begun from it: say with --init where it is now"
        raise BadRun(f"--init {path}: neither a run folder (it has no run.toml) nor a weight file{lost}")
    prints = {role: sha256(file) for role, file in files.items()}
    for role, digest in prints.items():
        if before.get(role, digest) != digest:
            raise BadRun(f"{files[role]} is not what {out} was begun from: it has changed since, or is "
                         "another run; say with --init where that is, or choose another --out")  # fmt: skip
    record = {"path": recorded["path"] if same_place else given, "parts": {**before, **prints}}
    return Initial(path=path, files=files, taken=taken, record=record, known=tuple(before))


def _recorded_place(given: str, out: Path) -> Path:
    """Return where the recorded source is: a relative path may have been given in a folder above the run's."""
    places = [Path(given), *(folder / given for folder in (out.resolve(), *out.resolve().parents))]
    return next((place for place in places if place.exists()), Path(given))


def _same_weights(source: Path, before: Mapping[str, str]) -> bool:
    """Return whether a source is the one a run was begun from, wherever it lies now."""
    if source.is_file():
        return sha256(source) in before.values()
    files = {role: source / f"{role}.safetensors" for role in before}
    found = [sha256(file) == before[role] for role, file in files.items() if file.is_file()]
    return bool(found) and all(found)


def _begun(out: Path, outline: Any, part: str) -> bool:
    """Return whether a stage is done in the run folder or has a checkpoint that can be gone on from."""
    done = all((out / f"{role}.safetensors").is_file() for role in outline.stages[part])
    return done or Checkpoints(out / "checkpoints" / part).newest() is not None


def _files(run: RunFolder, path: str, wanted: Mapping[str, list[str]], before: Mapping[str, str]) -> dict[str, Path]:
    """Return the weights of the stages' parts that the run has; those in `before` it must have."""
    files: dict[str, Path] = {}
    for part, roles in wanted.items():
        if all(run.finished(role) for role in roles):
            files |= {role: run.part_path(role) for role in roles}
        elif before.keys() & set(roles):
            raise BadRun(f"--init {path} has lost the weights that '{part}' was begun from; choose another --out")
        else:
            log.info("%s: %s has no weights for it; it starts anew", part, path)
    if not files:
        names = ", ".join(role for roles in wanted.values() for role in roles)
        has = ", ".join(sorted(file.name.removesuffix(".safetensors") for file in run.path.glob("*.safetensors")))
        raise BadRun(f"--init {path} has no weights for {names}; it has {has or 'none'}")
    return files


def _file(source: Path, wanted: Mapping[str, list[str]]) -> dict[str, Path]:
    """Return one part's weights."""
    roles = [role for roles in wanted.values() for role in roles]
    if len(roles) != 1:
        raise ConfigError(
            f"--init {source} is the weights of one part, and this command trains {', '.join(roles)}: "
            f"say which with --part, or give the run folder"
        )
    read_metadata(source)  # says what is wrong with the file
    return {roles[0]: source}


def _taken(run: RunFolder, out: Path, outline: Any, trained: set[str], said: tuple[str, ...]) -> tuple[str, ...]:
    """Return the roles that are taken from the run as they are: none that was trained on a part that will differ."""
    chosen = {text.partition("=")[0].strip() for text in said}
    taken = {
        role for role in outline.parts
        if role not in trained and run.finished(role) and not (out / f"{role}.safetensors").is_file()
        and not any(f"{role}.".startswith(f"{name}.") for name in chosen)
    }  # fmt: skip
    while True:
        wrong = {role for role in taken if set(read_metadata(run.part_path(role)).get("trained_on", {})) - taken}
        if not wrong:
            return tuple(role for role in outline.parts if role in taken)
        log.info("%s: left out, for a part it was trained on will differ here", ", ".join(sorted(wrong)))
        taken -= wrong


def begin_from(job: Job, initial: Initial) -> bool:
    """Have the stage begin from its weights, where it has no checkpoint: write one of no updates; every process calls.

    Returns whether there are weights to begin from.
    """
    files = {role: initial.files[role] for role in job.stage.roles if role in initial.files}
    if not files:
        return False
    # All of it by the first process, hashing too: the others wait for as long as it takes, not for one collective.
    first(job.engine.world, lambda: job.checkpoints.save(0, partial(_write, job, files), job.facts, World()))
    log.info("%s: starts from %s", job.stage.part, initial.path)
    return True


def _write(job: Job, files: Mapping[str, Path], folder: Path) -> None:
    """Write the state of an engine that has made no update from these weights."""
    dtypes = {name: x.dtype for name, x in job.stage.state_dict(keep_vars=True).items()}
    averaged = {name for name, p in job.stage.named_parameters() if p.requires_grad and job.recipe.ema is not None}
    tensors: dict[str, Lazy] = {}
    places: dict[str, Any] = {}
    for role, path in files.items():
        with TensorFile(path) as file:
            for name in file.lazy():
                key = f"{key_of(role)}.{name}"
                for kind, dtype in _kinds(key, dtypes[key], averaged):
                    shape = file.shape(name)
                    fetch = partial(_flat, path, name, dtype)
                    tensors[f"{kind}:{key}"] = Lazy((math.prod(shape),), dtype, fetch)
                    places[f"{kind}:{key}"] = [0, list(shape)]
    stream_tensors(folder / "state-00000-of-00001.safetensors", tensors, {"places": places})
    (folder / "engine.json").write_text(json.dumps({"engine": "none", "processes": 1, "updates": 0}))


def _kinds(key: str, dtype: torch.dtype, averaged: set[str]) -> Iterator[tuple[str, torch.dtype]]:
    """Yield what a checkpoint has of a tensor, and of which type."""
    yield "weights", dtype
    if key in averaged:
        yield "average", torch.promote_types(dtype, torch.float32)


def _flat(path: Path, name: str, dtype: torch.dtype) -> Tensor:
    with TensorFile(path) as file:
        return file.tensor(name).to(dtype).view(-1)

"""`zoo export`: the weights of a run or of a checkpoint, in one safetensors file, or in a public layout."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from zoo.errors import BadRun, BadWeights, PartMismatch, UnknownName
from zoo.files import atomic_text, atomic_write
from zoo.runs import RunFolder

Found = Callable[[], Mapping[str, Any]]
"""A part's weights, opened when it is called."""


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option(
    "--part",
    help="One part alone, under its own names. Default: all that have weights; with --layout, the one that has it.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The file to write, or a new folder.")
@click.option("--raw", is_flag=True, help="Weights as trained, not their moving average: those of the checkpoints.")
@click.option("--layout", "--to", help="A public layout, such as openai, for others. Default: the zoo's own names.")
def export(run: Path, part: str | None, out: Path, raw: bool, layout: str | None) -> None:
    """Write the weights of RUN, a run folder or one checkpoint in it, as one safetensors file.

    \b
    zoo export runs/dalle --part prior --out prior.safetensors
    zoo export runs/dalle/checkpoints/prior/step-00001000 --out prior.safetensors
    zoo export runs/clip --layout huggingface --out model.safetensors
    zoo export runs/imagegpt --layout transformers --out FOLDER

    A part that is done is taken as it was saved, one that is being trained (with --raw any that has one) from its
    newest whole checkpoint, however many processes wrote it. One tensor is held at a time; with --layout, which is
    of one part, all of the part's. Some layouts are folders of several files, which other programs load by one call:
    where --out has no suffix, such a folder is written, of all parts that are done and belong in it.
    """
    from zoo.weights import stream_tensors

    if out.suffix == ".safetensors" and (out.parent / "run.toml").is_file():
        raise BadRun(
            f"{out.parent} is a run folder, where '{out.name}' would be a part that is done; choose another --out"
        )
    with ExitStack() as files:
        parts = _parts(run, raw, files)
        if not parts:
            raise BadRun(f"{run} has no weights yet: no part is done and no checkpoint is whole")
        if part is not None:
            if part not in parts:
                raise UnknownName(
                    f"{run} has no weights of such a part: part", part, parts, f"it has {', '.join(parts)}"
                )
            parts = {part: parts[part]}
        if layout is not None and not out.suffix and (found := _of_folder(run, parts, layout)):
            _write_folder(run, found, layout, out)
            return
        if out.is_dir():
            raise BadRun(f"'{out}' is a folder, and these weights are one file; choose another --out")
        if layout is not None and len(parts) > 1:
            parts = _one_of_layout(run, parts, layout)
        alone = len(parts) == 1
        tensors = {
            name if alone else f"{role}.{name}": lazy for role, found in parts.items() for name, lazy in found().items()
        }
        if layout is not None:
            tensors = _in_layout(run, next(iter(parts)), layout, tensors)
        stream_tensors(out, tensors, {"exported": sorted(parts)}, foreign=layout is not None)
    size = sum(lazy.dtype.itemsize * _count(lazy.shape) for lazy in tensors.values())
    click.echo(f"{out}: {', '.join(sorted(parts))}; {len(tensors)} tensors, {size:,} bytes")


def _one_of_layout(run: Path, parts: Mapping[str, Found], layout: str) -> dict[str, Found]:
    """Return the one part that is written in a layout.

    Raises:
        UnknownName: none is.
        PartMismatch: several are.
    """
    from zoo.layouts import OWN

    found, _ = _outlined(run, parts)
    names = {part.role: (*part.spec.exports, OWN) for part in found}
    roles = [role for role, known in names.items() if layout in known]
    if not roles:
        known = sorted({name for each in names.values() for name in each})
        raise UnknownName("layout", layout, known, f"parts of {run} are written in {', '.join(known)}")
    if len(roles) > 1:
        raise PartMismatch(
            f"a layout is of one part: say which with --part; {run} has {', '.join(roles)} in layout {layout}"
        )
    return {roles[0]: parts[roles[0]]}


def _in_layout(run: Path, role: str, layout: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part's tensors in a public layout."""
    from zoo.layouts import write

    (part,), _ = _outlined(run, [role])
    return _lazy(write(part, layout, _state(run, part, tensors)))


def _outlined(run: Path, roles: Iterable[str]) -> tuple[list[Any], Any]:
    """Return the run's parts of these roles, as shapes only, and its config."""
    from zoo.construct import construct
    from zoo.layouts import part_of
    from zoo.resolution import resolve_tree

    home = run if (run / "run.toml").is_file() else run.resolve().parents[2]  # of RUN/checkpoints/PART/STEP
    node, config = resolve_tree(str(RunFolder(home).path.resolve()))
    outline = construct(node, config, device="meta")
    return [part_of(node, config, outline, role) for role in roles], config


def _state(run: Path, part: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return all of a part's tensors, read."""
    from zoo.weights import mismatch

    state = {name: lazy.fetch() for name, lazy in tensors.items()}
    if misfit := mismatch(part.module, state):
        raise BadWeights(f"{run}: {misfit}")
    return state


def _lazy(state: dict[str, Any]) -> dict[str, Any]:
    """Return tensors as they are written, each let go of after."""
    from zoo.weights import Lazy

    return {name: Lazy(tuple(x.shape), x.dtype, partial(state.pop, name)) for name, x in state.items()}


def _of_folder(run: Path, parts: Mapping[str, Found], layout: str) -> list[tuple[Any, Found]]:
    """Return the parts that have files in a folder of this layout."""
    found, _ = _outlined(run, parts)
    return [(part, parts[part.role]) for part in found if layout in part.spec.folders]


def _write_folder(run: Path, found: list[tuple[Any, Found]], layout: str, out: Path) -> None:
    """Write a folder that other programs load, whole or not at all.

    Raises:
        BadRun: there is something at `out`.
    """
    from zoo.specs import locate
    from zoo.weights import stream_tensors

    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadRun(f"'{out}' exists; a folder in layout {layout} is written whole: choose another --out")
    _, config = _outlined(run, [])
    files: dict[str, Any] = {}
    for part, tensors in found:
        make = locate(part.spec.folders[layout])
        files |= make(_state(run, part, tensors()), part.config, getattr(config, "image_size", None))
    with atomic_write(out) as place:
        place.mkdir()
        for name, content in files.items():
            if name.endswith(".safetensors"):
                stream_tensors(place / name, _lazy(content), foreign=True)
            else:
                atomic_text(place / name, json.dumps(content, indent=1) + "\n")
    click.echo(f"{out}: {', '.join(part.role for part, _ in found)}; {', '.join(sorted(files))}")


def _count(shape: tuple[int, ...]) -> int:
    import math

    return math.prod(shape)


def _parts(run: Path, raw: bool, files: ExitStack) -> dict[str, Found]:
    """Return what has weights, by role, each opened when it is called."""
    from zoo.train.checkpoint import MANIFEST, Checkpoints, torn

    if not (run / "run.toml").is_file():
        if not (run / MANIFEST).is_file() and not run.name.startswith("step-"):
            raise BadRun(f"'{run}' is neither a run folder (it has no run.toml) nor a checkpoint")
        if reason := torn(run):
            raise BadRun(f"{run} is not a whole checkpoint: {reason}")
        return dict(_of_checkpoint(run, raw, files))
    folder = RunFolder(run)
    trained: dict[str, Found] = {}
    for place in sorted((run / "checkpoints").glob("*")):
        newest = Checkpoints(place).newest()
        if newest is not None:
            trained |= _of_checkpoint(newest.folder, raw, files)
    roles = [path.name.removesuffix(".safetensors") for path in sorted(run.glob("*.safetensors"))]
    done: dict[str, Found] = {role: partial(_of_file, folder.part_path(role), files) for role in roles}
    return done | trained if raw else trained | done


def _of_file(path: Path, files: ExitStack) -> Mapping[str, Any]:
    """Return the tensors of a finished part, fetched when they are written."""
    from zoo.weights import TensorFile

    return files.enter_context(TensorFile(path)).lazy()


def _of_checkpoint(folder: Path, raw: bool, files: ExitStack) -> Iterator[tuple[str, Found]]:
    """Yield (role, tensors) of a checkpoint."""
    from zoo.train.shards import Shards

    state = files.enter_context(Shards(folder))
    names = state.names("weights")
    for key in dict.fromkeys(name.partition(".")[0] for name in names):
        mine = [name for name in names if name.startswith(f"{key}.")]
        yield key.replace("/", "."), partial(_some, state, key, mine, raw)


def _some(state: Any, key: str, names: list[str], raw: bool) -> dict[str, Any]:
    """Return the tensors of these names, without the role in front."""
    return {name.removeprefix(f"{key}."): state.lazy(name, raw=raw) for name in names}

"""`zoo export`: the weights of a run or of a checkpoint, in one safetensors file, also in a public layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from zoo.errors import BadRun, BadWeights, PartMismatch, UnknownName
from zoo.runs import RunFolder


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--part", help="One part alone, under its own names. Default: every part that has weights.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write.")
@click.option("--raw", is_flag=True, help="Weights as trained, not their moving average: those of the checkpoints.")
@click.option("--layout", help="A public layout, such as openai, for other programs. Default: the zoo's own names.")
def export(run: Path, part: str | None, out: Path, raw: bool, layout: str | None) -> None:
    """Write the weights of RUN, a run folder or one checkpoint in it, as one safetensors file.

    \b
    zoo export runs/dalle --part prior --out prior.safetensors
    zoo export runs/dalle/checkpoints/prior/step-00001000 --out prior.safetensors
    zoo export runs/clip --layout huggingface --out model.safetensors

    A part that is done is taken as it was saved, one that is being trained (with --raw any that has one) from its
    newest whole checkpoint, however many processes wrote it. One tensor is held at a time; with --layout, which is
    of one part, all of the part's.
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
        alone = len(parts) == 1
        if layout is not None and not alone:
            raise PartMismatch(f"a layout is of one part: say which with --part; {run} has {', '.join(parts)}")
        tensors = {
            name if alone else f"{role}.{name}": lazy for role, found in parts.items() for name, lazy in found().items()
        }
        if layout is not None:
            tensors = _in_layout(run, next(iter(parts)), layout, tensors)
        stream_tensors(out, tensors, {"exported": sorted(parts)}, foreign=layout is not None)
    size = sum(lazy.dtype.itemsize * _count(lazy.shape) for lazy in tensors.values())
    click.echo(f"{out}: {', '.join(sorted(parts))}; {len(tensors)} tensors, {size:,} bytes")


def _in_layout(run: Path, role: str, layout: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part's tensors in a public layout."""
    from zoo.construct import construct
    from zoo.layouts import part_of, write
    from zoo.resolution import resolve_tree
    from zoo.weights import Lazy, mismatch

    home = run if (run / "run.toml").is_file() else run.resolve().parents[2]  # of RUN/checkpoints/PART/STEP
    node, config = resolve_tree(str(RunFolder(home).path.resolve()))
    part = part_of(node, config, construct(node, config, device="meta"), role)
    state = {name: lazy.fetch() for name, lazy in tensors.items()}
    if misfit := mismatch(part.module, state):
        raise BadWeights(f"{run}: {misfit}")
    there = write(part, layout, state)
    return {name: Lazy(tuple(x.shape), x.dtype, partial(there.pop, name)) for name, x in there.items()}


def _count(shape: tuple[int, ...]) -> int:
    import math

    return math.prod(shape)


Found = Callable[[], Mapping[str, Any]]


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

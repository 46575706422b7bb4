"""`zoo export`: the weights of a run or of a checkpoint, in one plain safetensors file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import click

from zoo.errors import BadRun, UnknownName
from zoo.runs import RunFolder


@click.command()
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--part", help="One part alone, under its own names. Default: every part that has weights.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The file to write.")
@click.option("--raw", is_flag=True, help="Weights as trained, not their moving average: those of the checkpoints.")
def export(run: Path, part: str | None, out: Path, raw: bool) -> None:
    """Write the weights of RUN, a run folder or one checkpoint in it, as one safetensors file.

    \b
    zoo export runs/dalle --part prior --out prior.safetensors
    zoo export runs/dalle/checkpoints/prior/step-00001000 --out prior.safetensors

    A part that is done is taken as it was saved, one that is being trained (with --raw any that has one) from its
    newest whole checkpoint, however many processes wrote it. One tensor is held at a time.
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
        tensors = {
            name if alone else f"{role}.{name}": lazy for role, found in parts.items() for name, lazy in found().items()
        }
        stream_tensors(out, tensors, {"exported": sorted(parts)})
    size = sum(lazy.dtype.itemsize * _count(lazy.shape) for lazy in tensors.values())
    click.echo(f"{out}: {', '.join(sorted(parts))}; {len(tensors)} tensors, {size:,} bytes")


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

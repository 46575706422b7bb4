"""The weights that a run had at moments of its training: the checkpoints it has kept, and what it ended with.

Runs keep their newest two unless `scripts/train.py --keep` says more. The weights are those that would be saved: the
moving average where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from zoo.errors import BadRun
from zoo.runs import RunFolder
from zoo.train.checkpoint import MANIFEST, torn
from zoo.train.shards import Shards
from zoo.weights import load_into, load_tensors, read_metadata


@attrs.frozen
class Moment:
    """Weights of a stage at one moment of its training."""

    step: int
    path: Path
    """A checkpoint's folder, or the file of the finished part."""

    @property
    def batch(self) -> int | None:
        """The global batch it was trained with, where that was written down."""
        if self.path.is_file():
            return read_metadata(self.path).get("batch")
        facts = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))["facts"]
        return int(facts["recipe"]["batch"])

    @property
    def state(self) -> bytes:
        """What tells it from every other moment."""
        return (self.path if self.path.is_file() else self.path / MANIFEST).read_bytes()


def moments(run: Path, part: str) -> list[Moment]:
    """Return a run's whole checkpoints of a stage, and the finished part where no checkpoint is of its step; in order.

    Raises:
        BadRun: there are none.
    """
    found = [p for p in sorted((run / "checkpoints" / part).glob("step-*")) if p.name[5:].isdigit()]
    whole = [Moment(int(path.name[5:]), path) for path in found if int(path.name[5:]) and not torn(path, deep=False)]
    done = RunFolder(run).part_path(part)
    if done.is_file():
        step = int(read_metadata(done).get("steps", 0))
        if step not in {moment.step for moment in whole}:
            whole.append(Moment(step, done))
    if not whole:
        raise BadRun(f"'{run}' has no whole checkpoint of its {part} in {run / 'checkpoints' / part}")
    return sorted(whole, key=lambda moment: moment.step)


def load(generator: Any, part: str, moment: Moment) -> None:
    """Put the weights of a moment into the parts that the stage trains; they are ready then, and evaluating.

    Raises:
        BadWeights: they do not fit.
    """
    for role, (tensors, path) in _states(generator.stages[part], moment).items():
        load_into(generator.parts[role], tensors, path)
        generator.mark_ready(role)
    generator.eval()


def _states(roles: Sequence[str], moment: Moment) -> dict[str, tuple[dict[str, Tensor], Path]]:
    """Return the tensors of each role that a stage trains, and the file or folder that they are of."""
    if moment.path.is_file():  # the parts of a stage are finished together
        files = {role: moment.path.with_name(f"{role}.safetensors") for role in roles}
        return {role: (load_tensors(path)[0], path) for role, path in files.items() if path.is_file()}
    with Shards(moment.path) as shards:
        names = shards.names("weights")
        own = {role: [name for name in names if name.startswith(f"{role}.")] for role in roles}
        return {
            role: ({name.removeprefix(f"{role}."): shards.lazy(name).fetch() for name in mine}, moment.path)
            for role, mine in own.items()
            if mine
        }

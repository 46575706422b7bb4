"""Whether weights that a training starts from belong to what it trains: settings, shapes, and the parts around them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from zoo.config import fields, plain
from zoo.errors import BadWeights, ConfigError, PartMismatch
from zoo.parts import Ref
from zoo.resolution import RECEIVES, Node
from zoo.runs import RunFolder
from zoo.train.initial import Initial, nodes_of
from zoo.train.stage import trained_roles
from zoo.weights import TensorFile, mismatch, read_metadata, sha256

log = logging.getLogger("zoo.train")


class Difference(NamedTuple):
    """A field that has one value in the system to be trained and another where the weights come from."""

    path: str
    """As `--set` names it."""
    here: Any
    there: Any


def check(initial: Initial, root: Node, outline: Any, stages: tuple[str, ...], out: Path) -> None:
    """Refuse weights that do not fit, before anything is written.

    A field of a part that differs is refused unless it was set by hand and leaves the shapes as they are: heads and
    kernels, for example, change what weights mean and not their shapes. What only its training reads (`train`) may
    differ, and so may what the parts around it decide, as long as shapes fit.

    Args:
        initial: where the weights come from.
        root: the tree of the system to be trained, with what is taken in its place.
        outline: the same, built on the meta device.
        stages: those the command trains.
        out: the run folder.

    Raises:
        ConfigError: fields differ; the text says what to type.
        BadWeights: shapes differ and no field says why.
        PartMismatch: another class of part, or a part was trained on another tokenizer than the one here.
    """
    if not initial.files:
        return  # all have checkpoints of their own
    ours, theirs = nodes_of(root), _theirs(initial)
    for role in (*initial.files, *initial.taken):
        here, there = ours[role], theirs.get(role)
        if there is not None and here.cls is not there.cls:
            raise PartMismatch(
                f"--init {initial.path}: {role} is {here.card} here and {there.card} there: "
                f"add --set {_path(root, role, '')}={there.card}"
            )
        misfit = _misfit(outline, role, _weights(initial, role))
        found = list(_differences(root, outline, role, there)) if there is not None else []
        unsaid = [x for x in found if x.path.rpartition(".")[2] not in here.pinned]
        if misfit and not found:
            raise _unlike(initial, role, misfit, root, outline, theirs)
        if misfit or (unsaid and role in initial.files and role not in initial.known):
            raise _refusal(initial, found if misfit else unsaid)
    for role in initial.files:
        _check_lineage(initial, role, ours, outline, stages, out)


def _theirs(initial: Initial) -> Mapping[str, Node]:
    """Return the parts of where the weights come from, by role; none where a file says nothing of its settings."""
    if initial.run is not None:
        return nodes_of(initial.run.node())
    (role, file), *_ = initial.files.items()
    if not (file.parent / "run.toml").is_file():
        return {}
    found = nodes_of(RunFolder(file.parent).node())
    return {role: found[file.stem]} if file.stem in found else {}


def _weights(initial: Initial, role: str) -> Path:
    if role in initial.files:
        return initial.files[role]
    assert initial.run is not None
    return initial.run.part_path(role)


def _misfit(outline: Any, role: str, path: Path) -> str:
    shapes: Any = TensorFile(path).lazy()  # of which only the shapes are asked
    return mismatch(outline.parts[role], shapes)


def _differences(root: Node, outline: Any, role: str, there: Node) -> Iterator[Difference]:
    """Yield the part's own fields that differ."""
    decided = RECEIVES.get(there.interface, frozenset())
    for name, kind in fields(there.cls).items():
        if name == "train" or name in decided or kind is Ref or name in there.children or name not in there.values:
            continue
        here = getattr(outline.parts[role].config, name)
        if isinstance(here, Ref) or here == there.values[name]:
            continue
        yield Difference(_path(root, role, name), here, there.values[name])


def _unlike(
    initial: Initial, role: str, misfit: str, root: Node, outline: Any, theirs: Mapping[str, Node]
) -> Exception:  # fmt: skip
    """Return the error for shapes that differ though the part's own fields do not."""
    around = [
        x for other in (outline.reads(role) if role in outline.stages else ())
        if other in theirs and theirs[other].cls is type(outline.parts[other].config)
        for x in _differences(root, outline, other, theirs[other])
    ]  # fmt: skip
    if around:
        return _refusal(initial, around)
    config, there = outline.parts[role].config, theirs.get(role)
    decided = sorted(RECEIVES.get(there.interface, frozenset()) & there.values.keys()) if there is not None else []
    for name in decided:
        assert there is not None
        if getattr(config, name) != there.values[name]:
            return PartMismatch(
                f"--init {initial.path}: {_path(root, role, name)} is {_text(getattr(config, name))} here and "
                f"{_text(there.values[name])} there, which the parts or the data around it decide: "
                "take those from there too"
            )
    return BadWeights(f"--init {initial.path}: {role}: {misfit}")


def _refusal(initial: Initial, found: list[Difference]) -> Exception:
    """Return the error that names every field that differs and what to type."""
    said = ", ".join(f"{x.path} is {_text(x.here)} here and {_text(x.there)} there" for x in found)
    typed = " ".join(f"--set {x.path}={_text(x.there)}" for x in found)
    return ConfigError(f"--init {initial.path}: {said}: add {typed}")


def _path(root: Node, role: str, name: str) -> str:
    """Return a field as `--set` names it; a lone part's fields go without its role."""
    steps = role.split(".") if root.interface == "generator" else role.split(".")[1:]
    return ".".join([*steps, *filter(None, [name])])


def _text(value: Any) -> str:
    """Return a value as `--set` takes it, without spaces."""
    value = plain(value)
    return "none" if value is None else value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _check_lineage(
    initial: Initial, role: str, ours: Mapping[str, Node], outline: Any, stages: tuple[str, ...], out: Path
) -> None:  # fmt: skip
    """Refuse a part whose tokenizer (whatever is fitted and not trained) is not the one it has learnt with."""
    changing = {r for part in stages for r in trained_roles(outline, part)}
    knew = read_metadata(initial.files[role]).get("trained_on", {})
    part = next(name for name in stages if role in outline.stages[name])
    for other in outline.reads(part):
        if other in changing:
            continue
        fitted = hasattr(outline.parts[other], "fit")
        now = _fingerprint(initial, other, ours[other], out)
        if now is None and fitted:
            raise PartMismatch(
                f"--init {initial.path} brings no '{other}', and one that is fitted anew would have other ids: "
                f"add --set {other}=RUN, or give the run folder itself"
            )
        if now is not None and knew.get(other, now) != now:
            if fitted:
                raise PartMismatch(
                    f"--init {initial.path}: '{role}' has learnt with another '{other}' than the one here; "
                    f"leave --set {other}=... out, or choose another --out"
                )
            log.warning("%s: has learnt with another '%s' than the one here", role, other)


def _fingerprint(initial: Initial, role: str, node: Node, out: Path) -> str | None:
    """Return the sha256 of the weights a part will have here, None where it has none yet."""
    if (out / f"{role}.safetensors").is_file():
        return sha256(out / f"{role}.safetensors")
    if node.source is not None:
        path = RunFolder(node.source).part_path(node.source_role)
        return sha256(path) if path.is_file() else None
    return None

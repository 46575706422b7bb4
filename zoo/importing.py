"""Public checkpoints into run folders.

No model is built: what the part should have is read off the meta device, and the file's tensors are converted and
written one by one. The run appears whole, or is as it was.

A part whose public files are no tensors has `vocabulary_files(place) -> {name: file}`. What its layouts are made of is
the bytes of these files, uint8, by name; it is read, too, when it lies beside the weights of a part that reads it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from zoo.catalogue import catalogue
from zoo.config import Overrides
from zoo.construct import construct
from zoo.errors import BadRun, BadWeights
from zoo.files import atomic_bytes, atomic_write
from zoo.layouts import Part, dropped, find, part_of, read
from zoo.resolution import Node, is_run, resolve_tree
from zoo.runs import RunFolder, full_role
from zoo.specs import locate
from zoo.weights import Lazy, load_into, public_files, read_metadata, read_public, sha256

DESCRIPTION = "config.json"
"""What lies beside weights in Hugging Face's folders."""


def import_public(
    name: str,
    path: Path,
    out: Path,
    *,
    part: str | None = None,
    layout: str | None = None,
    overrides: Overrides = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Read a public checkpoint into the run folder `out`, as the finished part of a card.

    Args:
        name: a card of a part or of a system, or a run folder of one.
        path: a file or folder; see `zoo.weights.read_public`.
        out: a new folder, or a run of the same card that has no weights for this part; it keeps its settings.
        part: role of the part; None: the one that the card is of.
        layout: name of the file's layout; None: found.
        overrides: as for `zoo.build`.
        progress: called with (tensors written, tensors in all).

    Returns:
        The facts, as `zoo import --json` prints them.

    Raises:
        BadRun: `out` is something else, or has weights for the part.
        BadWeights: the file is damaged or foreign, or fits no layout of the part.
        OSError: the disk is full, ... Nothing is left behind.
    """
    begun = _begun(name, out)
    node, config = resolve_tree(str(out.resolve()) if begun and name in catalogue() else name, overrides)
    outline = construct(node, config, device="meta")
    target = part_of(node, config, outline, part)
    _check_place(target, out, begun, _source(node, target))
    found = _find(target, path, layout)
    beside = [part_of(node, config, outline, role) for role in outline.reads(target.role)]
    beside = [x for x in beside if _vocabulary_files(x)]
    others, lacking = _find_beside([x for x in beside if _source(node, x) is None], path, out)
    tensors = _converted(target, found.mapped, progress)
    every = [found, *others.values()]
    with _whole(out, node, [x.target.role for x in every]) as place:
        data = begun.data["data"] if begun else getattr(config, "data", None) or "shapes"
        seed = begun.data["seed"] if begun else 0
        run = RunFolder.create(place, node, config, seed=seed, data=data)
        for other in others.values():
            other.save(run, _converted(other.target, other.mapped, lambda done, total: None))
        written = found.save(run, tensors).name
        ready = outline.ready
        missing = [role for role in outline.parts if not (ready[role] or run.finished(role))]
    card = catalogue().cards.get(target.card)
    return found.facts | {
        "ignored": _ignored(path, [file for x in every for file in x.files]),
        "license": card.license if card else "",
        "run": str(out),
        "file": written,
        "beside": [x.facts for x in others.values()],
        "lacking": lacking,
        "not_ready": missing,
        "left_out": "" if beside else target.spec.left_out,
    }


@attrs.frozen
class _Found:
    """A part's public weights, mapped and not yet written."""

    target: Part
    source: str
    """Name of the file or folder they came from."""
    files: list[Path]
    mapped: dict[str, Tensor]
    facts: dict[str, Any]

    def save(self, run: RunFolder, tensors: dict[str, Lazy]) -> Path:
        """Write the part into the run, with where it came from in its header."""
        imported = {"from": self.source, "layout": self.facts["layout"], "files": self.facts["files"]}
        extra = {"imported": imported}
        return run.save_part(self.target.role, self.target.module, extra=extra, tensors=tensors)


def _find(target: Part, path: Path, layout: str | None = None) -> _Found:
    """Read and map a part's public files; raises BadWeights as `import_public` does."""
    state, files = _read(target, path)
    chosen = find(target, state, path, layout)
    files = [*files, *_described(target, chosen, path)]
    facts = {
        "card": target.card,
        "part": target.role,
        "layout": chosen,
        "read": len(state),
        "dropped": dropped(target, chosen, state),
    }
    with torch.no_grad():
        mapped = _mapped(target, chosen, state, path)
    del state  # what the mapping dropped or joined is not kept
    facts |= _count(target, mapped, path)
    if hasattr(target.module, "fit"):  # shapes say nothing of what was fitted: the part itself looks at the values
        load_into(target.module, mapped, path)
        if not getattr(target.module, "ready", True):
            raise BadWeights(f"{path}: '{target.role}' was not fitted when this was written")
    facts["files"] = [{"name": file.name, "sha256": sha256(file), "bytes": file.stat().st_size} for file in files]
    return _Found(target, path.name, files, mapped, facts)


def _described(target: Part, layout: str, path: Path) -> list[Path]:
    """Return the description beside the weights, having agreed to it; nothing where the layout reads none."""
    file = (path if path.is_dir() else path.parent) / DESCRIPTION
    if layout not in target.spec.described or not file.is_file():
        return []
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadWeights(f"{file}: is no JSON ({error}); take it away, or have it again") from error
    try:
        locate(target.spec.described[layout])(said if isinstance(said, dict) else {}, target.config)
    except BadWeights as error:
        raise BadWeights(f"{file}: {error}") from error
    return [file]


def _vocabulary_files(part: Part) -> Any:
    """Return the part's function from a place to its files that are no tensors; None: it has none."""
    return getattr(part.module, "vocabulary_files", None)


def _read(target: Part, path: Path) -> tuple[dict[str, Tensor], list[Path]]:
    """Return a checkpoint's tensors, or the bytes of a vocabulary's files by name; and the files."""
    vocabulary_files = _vocabulary_files(target)
    if vocabulary_files is None or path.suffix == ".safetensors":
        files = [file for file, _ in public_files(path)]
        return read_public(path), files
    named = vocabulary_files(path)
    content = {name: np.frombuffer(file.read_bytes(), dtype=np.uint8).copy() for name, file in named.items()}
    return {name: torch.from_numpy(data) for name, data in content.items()}, list(named.values())


def _mapped(target: Part, layout: str, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    if _vocabulary_files(target) is None:
        return read(target, layout, state)
    try:
        return read(target, layout, state)
    except BadWeights as error:  # the only layouts that look at values
        raise BadWeights(f"{path}: {error}") from error


def _find_beside(readable: list[Part], path: Path, out: Path) -> tuple[dict[str, _Found], dict[str, str]]:
    """Return what lies beside the weights, by role; and what does not: which file it is, and what to type."""
    found: dict[str, _Found] = {}
    lacking: dict[str, str] = {}
    for part in readable:
        folder = path if path.is_dir() else path.parent
        try:
            _vocabulary_files(part)(folder)
        except BadWeights as error:
            lacking[part.role] = f"{error}; have it and type: zoo import {out} FILE --part {part.role} --out {out}"
        else:
            found[part.role] = _find(part, folder)
    return found, lacking


def _begun(name: str, out: Path) -> RunFolder | None:
    """Return the run that exists at `out`, if any.

    Raises:
        BadRun: there is something else, or a run of another card.
    """
    if not (out / "run.toml").is_file():
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise BadRun(f"'{out}' exists and is not a run folder; choose another --out")
        return None
    begun, card = RunFolder(out), RunFolder(name).card if is_run(name) else catalogue().get(name).name
    if begun.card != card:
        raise BadRun(f"{out} was begun with model '{begun.card}', not '{card}'; choose another --out")
    return begun


def _source(node: Node, target: Part) -> Path | None:
    """Return the run that the part's weights are in already, if any."""
    steps = target.role.split(".")
    for step in steps[1:] if target.alone else steps:
        node = node.children[step]
    return node.source


def _check_place(target: Part, out: Path, begun: RunFolder | None, source: Path | None) -> None:
    """Refuse to write over weights, and under what was trained on others."""
    if source is not None and source.resolve() != out.resolve():
        raise BadRun(f"'{source}' has weights for '{target.role}' already; give the name of its card, {target.card}")
    if source is not None:
        file = RunFolder(source).part_path(target.role)
        raise BadRun(f"{file} has the weights of '{target.role}' already; choose another --out, or delete it")
    if begun is None:
        return
    if any((begun.path / "checkpoints" / target.role).glob("step-*")):
        raise BadRun(f"{begun.path}: '{target.role}' is being trained there; choose another --out")
    for other in sorted(begun.path.glob("*.safetensors")):
        if target.role in read_metadata(other).get("trained_on", {}):
            raise BadRun(f"{other} was trained on another '{target.role}'; choose another --out")


def _count(target: Part, mapped: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Return what will be written, and which types are converted.

    Raises:
        BadWeights: a tensor is of another kind, such as integers where the model has fractions.
    """
    own = target.module.state_dict()
    changes: Counter[str] = Counter()
    for key, x in mapped.items():
        to = own[key].dtype
        if x.is_floating_point() != to.is_floating_point or x.is_complex() != to.is_complex:
            raise BadWeights(f"{path}: '{key}' is of type {_type(x.dtype)}, the model's is {_type(to)}")
        if x.dtype != to:
            changes[f"{_type(x.dtype)} -> {_type(to)}"] += 1
    return {
        "tensors": len(mapped),
        "params": sum(p.numel() for p in target.module.parameters()),
        "dtype": ", ".join(sorted({_type(x.dtype) for x in own.values()})),
        "converted": dict(changes),
    }


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _converted(target: Part, mapped: dict[str, Tensor], progress: Callable[[int, int], None]) -> dict[str, Lazy]:
    """Return the tensors in the model's types, each converted when it is written and let go of after."""
    own = target.module.state_dict()
    total = len(mapped)

    def fetch(key: str) -> Tensor:
        x = mapped.pop(key).to(own[key].dtype)
        progress(total - len(mapped), total)
        return x

    return {key: Lazy(tuple(x.shape), own[key].dtype, partial(fetch, key)) for key, x in mapped.items()}


@contextmanager
def _whole(out: Path, node: Node, roles: list[str]) -> Iterator[Path]:
    """Yield where to write the run: when the block fails, `out` is as it was.

    Args:
        out: the run folder.
        node: its parts, of which those of other runs are copied in.
        roles: the parts that are written.
    """
    if not (out / "run.toml").is_file():
        with atomic_write(out.absolute()) as place:  # "." has no name to write beside
            yield place
        return
    copied = [full_role(node, x) for x, part in node.walk() if part.source and part.source.resolve() != out.resolve()]
    files = [file for x in (*roles, *copied) if not (file := out / f"{x}.safetensors").exists()]
    before = (out / "run.toml").read_bytes()
    try:
        yield out
    except BaseException:
        # Only what this call may have written: somebody else may be at work in the same run.
        for path in files:
            path.unlink(missing_ok=True)
        atomic_bytes(out / "run.toml", before)
        raise


def _ignored(path: Path, files: list[Path]) -> list[str]:
    """Return what else is in the folder that was given."""
    if not path.is_dir():
        return []
    used = {*files, *(file.parent for file in files)}
    others = [x for x in sorted(path.iterdir()) if x not in used and not x.name.startswith(".")]
    return [f"{x.name}/" if x.is_dir() else x.name for x in others]

"""Run folders: what was trained, from what, and where its weights are.

    run.toml                 the resolved config and versions, written by the first command
    metrics.jsonl            one object a step
    checkpoints/ samples/ store/
    <role>.safetensors       a finished part; its header says what it was trained on

Imports no torch until weights are read or written.
"""

from __future__ import annotations

import platform
import shutil
import tomllib
from collections.abc import Collection, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from zoo import plugins
from zoo.config import without_none
from zoo.errors import BadRun, ConfigError, PartMismatch
from zoo.files import atomic_text, atomic_write
from zoo.parts import Ref
from zoo.resolution import Node, bind, dump, node_of, undump
from zoo.weights import Lazy, load_into, load_tensors, read_metadata, save_tensors, sha256, stream_tensors

FORMAT = 1


class RunFolder:
    """A run that exists.

    Raises:
        BadRun: there is no run.toml, it cannot be read, or it is of a later format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / "run.toml"
        if not file.is_file():
            raise BadRun(f"'{path}' is not a run folder: it has no run.toml")
        try:
            self.data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
            raise BadRun(f"{file} cannot be read: {cause}") from cause
        if self.data.get("format") != FORMAT or "config" not in self.data:
            raise BadRun(f"{file} has format {self.data.get('format')!r}; this zoo reads {FORMAT}")

    @classmethod
    def create(
        cls, path: str | Path, node: Node, config: Any, *, seed: int, data: str, init: Mapping[str, Any] | None = None
    ) -> RunFolder:  # fmt: skip
        """Make the folder, or take up one that exists.

        The weights of parts that come from other runs are copied in. In an existing folder the config may change only
        in parts that are not trained yet. `init` says which weights training starts from; what an existing folder says
        of it stays where it is None.

        Raises:
            BadRun: the card, the seed, or a trained part's config would change.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise BadRun(f"'{path}' is a file; a run is a folder")
        new = {
            "format": FORMAT,
            "card": node.card,
            "seed": seed,
            "data": data,
            "versions": versions(node),
            "config": without_none(dump(config, node)),
        }
        if (path / "run.toml").exists():
            begun = cls(path)
            begun._check_change(new, node)
            init = begun.data.get("init") if init is None else init
        if init is not None:
            new["init"] = dict(init)
        for role, part in node.walk():
            if part.source is not None and part.source.resolve() != path.resolve():
                _copy_part(part, path / f"{full_role(node, role)}.safetensors")
        atomic_text(path / "run.toml", tomli_w.dumps(new))
        return cls(path)

    def _check_change(self, new: dict[str, Any], node: Node) -> None:
        trained = [role for role, _ in _roles(node) if self.finished(role)]
        for key in ("card", "seed"):
            if trained and new[key] != self.data[key]:
                raise BadRun(
                    f"{self.path} was begun with {key} {self.data[key]!r}, not {new[key]!r}; use another --out"
                )
        root = self.node() if trained else node
        config = bind(root) if trained else None
        before = without_none(dump(config, root)) if trained else {}
        for role in trained:
            change = next(differences(_table(before, role, node), _table(new["config"], role, node)), None)
            if change is not None:
                name, old, now = change
                files = " and ".join(map(str, self._files(trained_with(config, role)[1])))
                raise BadRun(
                    f"{self.path}: '{role}' is trained with other settings, {name}={old!r} and not {now!r}; "
                    f"use another --out, or delete {files} to train it again"
                )

    @property
    def card(self) -> str:
        """Name of the card the run was begun with."""
        return self.data["card"]

    @property
    def config(self) -> Any:
        """The bound config."""
        return bind(self.node())

    def node(self, interface: str | None = None, role: str = "") -> Node:
        """Return the unbound tree, or that of its one part with this interface; every part takes its weights here.

        Of several parts with the interface, the one in `role` is meant. A field that came after the run was begun has
        its default: so the run was trained.

        Raises:
            PartMismatch: the run has no such part, or several.
        """
        try:
            root = undump(self.data["config"])
        except (ConfigError, KeyError) as cause:
            raise BadRun(f"{self.path / 'run.toml'}: {cause}") from cause
        for _, part in list(root.walk()):
            _add_newer_fields(part)
        for name, part in _roles(root):
            if self.part_path(name).exists():
                part.source, part.source_role = self.path, name
        if interface is None or root.interface == interface:
            return root
        fitting = {name: child for name, child in root.children.items() if child.interface == interface}
        if role in fitting:
            return fitting[role]
        if len(fitting) != 1:
            raise PartMismatch(f"'{self.path}' has {len(fitting)} parts of kind {interface}; one is needed here")
        return next(iter(fitting.values()))

    def part_path(self, role: str) -> Path:
        """Return where a finished part's weights are."""
        return self.path / f"{role}.safetensors"

    def finished(self, role: str) -> bool:
        """Return True when the part is trained or fitted."""
        return self.part_path(role).exists()

    def _files(self, roles: Collection[str]) -> list[Path]:
        return [self.part_path(role) for role in roles if self.finished(role)]

    def fingerprint(self, role: str) -> str:
        """Return the sha256 of a finished part's file."""
        return sha256(self.part_path(role))

    def save_part(
        self,
        role: str,
        module: Any,
        *,
        trained_on: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
        tensors: Mapping[str, Lazy] | None = None,
    ) -> Path:
        """Write a finished part, whole or not at all, with what it is and what it was trained on in its header.

        `tensors` are what to write where the module does not hold them itself; they are fetched one by one.
        """
        header = {
            "format": FORMAT,
            "card": module.card,
            "plugin": module.plugin,
            "version": module.version,
            "trained_on": trained_on or {},
            **(extra or {}),
        }
        if tensors is None:
            save_tensors(self.part_path(role), module.state_dict(), header)
        else:
            stream_tensors(self.part_path(role), tensors, header)
        return self.part_path(role)

    def load_parts(self, built: Any, roles: Collection[str] | None = None) -> None:
        """Load every finished part, or those of `roles`, into a built system and mark it ready.

        Raises:
            BadWeights: a file is truncated, foreign, or of another model.
        """
        for role in built.parts:
            if self.finished(role) if roles is None else role in roles:
                load_part(self.part_path(role), built, role)

    def check_lineage(self) -> None:
        """Raise BadRun when a part was trained on another part than the one that lies beside it now."""
        prints: dict[str, str] = {}
        for path in sorted(self.path.glob("*.safetensors")):
            role = path.name.removesuffix(".safetensors")
            for other, expected in read_metadata(path).get("trained_on", {}).items():
                if other not in prints:
                    prints[other] = self.fingerprint(other) if self.finished(other) else ""
                if prints[other] != expected:
                    stage, roles = trained_with(self.config, role)
                    files = " ".join(map(str, self._files(roles)))
                    raise BadRun(
                        f"{self.path}: '{role}' was trained on another '{other}' than the one here; train it again: "
                        f"rm {files} && python scripts/train.py --model {self.path} --part {stage}"
                    )


def trained_with(config: Any, role: str) -> tuple[str, tuple[str, ...]]:
    """Return the stage of a system that trains a part, and all the parts it trains; nothing is built."""
    together = config.together() if hasattr(config, "together") else {}
    for stage, others in together.items():
        if role in (stage, *others):
            return stage, (*others, stage)
    return role.partition(".")[0], (role,)


def load_part(path: Path, built: Any, role: str) -> None:
    """Load one weight file into the part `role` of a built system and mark it ready."""
    tensors, _ = load_tensors(path)
    load_into(built.parts[role], tensors, path)
    built.mark_ready(role)


def load_sources(node: Node, built: Any, roles: Collection[str] | None = None) -> None:
    """Load the weights of every part, or of those in `roles`, that was taken from a run folder."""
    for role, part in _roles(node):
        if part.source is not None and (roles is None or role in roles):
            load_part(RunFolder(part.source).part_path(part.source_role), built, role)


def full_role(node: Node, role: str) -> str:
    """Return a role as files and `g.parts` name it: the lone part of a part's card goes by its interface."""
    return role if node.interface == "generator" else f"{node.interface}.{role}".strip(".")


def _roles(node: Node) -> list[tuple[str, Node]]:
    named = [(full_role(node, role), part) for role, part in node.walk()]
    return [(role, part) for role, part in named if role]


def _add_newer_fields(node: Node) -> None:
    """Give the fields that a stored part lacks their defaults; one without, or computed from others, is left to it."""
    for name, field in attrs.fields_dict(node.cls).items():
        default: Any = field.default
        if name in node.values or default is attrs.NOTHING or getattr(default, "takes_self", False):
            continue
        node.values[name] = default.factory() if hasattr(default, "factory") else default
        if isinstance(default, Ref):
            node.children[name] = node_of(default.card, default.interface)


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, old, new) of every leaf in which two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            yield from differences(old.get(name), new.get(name), f"{where}.{name}".strip("."))
    elif old != new:
        yield where, old, new


def _table(config: dict[str, Any], role: str, node: Node) -> Any:
    """Return a part's own table, without the parts it holds."""
    steps = role.split(".") if node.interface == "generator" else role.split(".")[1:]
    table: Any = config
    for step in steps:
        table = table.get(step, {}) if isinstance(table, dict) else {}
    return {k: v for k, v in table.items() if not (isinstance(v, dict) and "interface" in v)}


def _copy_part(part: Node, dest: Path) -> None:
    assert part.source is not None
    source = RunFolder(part.source).part_path(part.source_role)
    if not source.exists():
        return
    if dest.exists():
        if sha256(dest) != sha256(source):
            raise BadRun(f"{dest} exists and is not {source}; use another --out")
        return
    with atomic_write(dest) as beside:
        shutil.copyfile(source, beside)


def versions(node: Node) -> dict[str, str]:
    origins = plugins.installed().origins
    used = {part.plugin for _, part in node.walk() if part.plugin in origins}
    return {
        "python": platform.python_version(),
        "torch": metadata.version("torch"),
        **{name: origins[name].version for name in sorted(used | {plugins.CORE})},
    }

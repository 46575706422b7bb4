"""What a checkpoint and the command that goes on from it must agree about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from zoo.config import plain
from zoo.errors import BadRun

if TYPE_CHECKING:
    from zoo.train.checkpoint import Checkpoint


def facts(**said: Any) -> dict[str, Any]:
    """Return values as they will read back from a checkpoint."""
    return json.loads(json.dumps(plain(said), default=str))


def check(found: Checkpoint, wanted: Mapping[str, Any], what: str) -> None:
    """Refuse to go on from a checkpoint that was made with other settings, as far as these are given.

    Raises:
        BadRun: names the first that differs.
    """
    changed = list(differences({name: found.facts.get(name) for name in wanted}, dict(wanted)))
    if changed:
        name, old, new = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise BadRun(
            f"{what} was made with {name}={old!r}, not {new!r}{more}; "
            "resume with the same settings, or choose another --out"
        )


def differences(old: Any, new: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield (dotted name, old, new) of every leaf in which two plain values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            yield from differences(old.get(name), new.get(name), f"{where}.{name}".strip("."))
    elif old != new:
        yield where, old, new

"""What a checkpoint and the command that goes on from it must agree about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs

from zoo.config import plain, structure
from zoo.errors import BadRun, ConfigError
from zoo.runs import differences

if TYPE_CHECKING:
    from zoo.train.checkpoint import Checkpoint


def facts(**said: Any) -> dict[str, Any]:
    """Return values as they will read back from a checkpoint."""
    return json.loads(json.dumps(plain(said), default=str))


def check(found: Checkpoint, wanted: Mapping[str, Any], what: str) -> None:
    """Refuse to go on from a checkpoint that was made with other settings, as far as these are given.

    A field that came after the checkpoint was made counts as its default.

    Args:
        found: the checkpoint.
        wanted: the settings; configs as they are, of which the class is asked what the checkpoint lacks.
        what: the checkpoint, for the message.

    Raises:
        BadRun: names the first that differs, or that there is no more.
    """
    try:
        before = {name: _completed(found.facts.get(name), like, name) for name, like in wanted.items()}
    except ConfigError as error:
        then = "resume with the same parts and version, or choose another --out"
        raise BadRun(f"{what}: {error}; {then}") from None
    changed = list(differences(facts(**before), facts(**wanted)))
    if changed:
        name, old, new = changed[0]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise BadRun(
            f"{what} was made with {name}={old!r}, not {new!r}{more}; "
            "resume with the same settings, or choose another --out"
        )


def _completed(said: Any, like: Any, where: str) -> Any:
    """Return what a checkpoint says of a config, as a config of the class of `like`; likewise within mappings.

    Raises:
        ConfigError: it has a field that the class has not.
    """
    if not isinstance(said, Mapping):
        return said
    held = like.get if isinstance(like, Mapping) else lambda name: getattr(like, name, None)
    inner = {name: _completed(x, held(name), f"{where}.{name}") for name, x in said.items()}
    return structure(inner, type(like), where) if attrs.has(type(like)) else inner

"""The catalogue: which named models exist, where they come from, what they weigh. Read without importing a plugin.

Ours is `registry.toml`; every installed third-party plugin may ship its own in its package. No hyper-parameter lives
only here: a card names a plugin's variant, and the variant is code.
"""

from __future__ import annotations

import functools
import tomllib
import warnings
from pathlib import Path
from typing import Any

import attrs

from zoo import plugins
from zoo.config import structure, value
from zoo.errors import ConfigError, NameClash, UnknownName
from zoo.interfaces import INTERFACES


@attrs.frozen(kw_only=True)
class Weights:
    """One published weight file."""

    uri: str
    sha256: str
    bytes: int
    source: str
    tag: str = "default"


@attrs.frozen(kw_only=True)
class Card:
    """One named model."""

    name: str
    plugin: str
    """Entry-point name of the plugin that has the variant."""
    variant: str
    kind: str = attrs.field(validator=attrs.validators.in_(INTERFACES))
    """The interface of what is built."""
    summary: str
    paper: str = ""
    params: int = attrs.field(default=0, validator=attrs.validators.ge(0))
    """Parameters of all parts."""
    resolution: int | None = None
    """Side of the square pictures, pixels."""
    license: str = ""
    status: str = "trainable"
    pip: str | None = None
    """What to install when the plugin is missing."""
    overrides: tuple[str, ...] = ()
    """Overrides applied to the variant, as on the command line."""
    weights: tuple[Weights, ...] = ()
    origin: str = "image-zoo"
    """Distribution whose catalogue has the card."""


class Catalogue:
    """Cards and aliases by name."""

    def __init__(self) -> None:
        self.cards: dict[str, Card] = {}
        self.aliases: dict[str, str] = {}
        self.clashes: dict[str, tuple[str, str]] = {}
        self._claims: dict[str, str] = {}

    def read(self, path: Path, origin: str) -> None:
        """Add the cards and aliases of one file, all of them or none.

        Raises:
            ConfigError: a card has an unknown field, a wrong type or no such kind; names the file.
        """
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as cause:
            raise ConfigError(f"{path}: not a TOML file: {cause}") from cause
        aliases = value(data.get("aliases", {}), dict[str, str], f"{path}: aliases")
        tables = value(data.get("models", {}), dict[str, dict[str, Any]], f"{path}: models")
        cards = [self._card(name, fields, path, origin) for name, fields in tables.items()]
        for card in cards:
            self._claim(card.name, card.origin)
            self.cards.setdefault(card.name, card)
        for name, target in aliases.items():
            self._claim(name, origin)
            self.aliases.setdefault(name, target)

    def _card(self, name: str, fields: dict[str, Any], path: Path, origin: str) -> Card:
        try:
            return structure({"origin": origin, **fields, "name": name}, Card)
        except ConfigError as cause:
            raise ConfigError(f"{path}: card '{name}': {cause}") from cause

    def _claim(self, name: str, origin: str) -> None:
        if name in self._claims:
            self.clashes[name] = (self._claims[name], origin)
        self._claims.setdefault(name, origin)

    def __contains__(self, name: str) -> bool:
        return name in self.cards or name in self.aliases

    def get(self, name: str) -> Card:
        """Return the card of this name or alias.

        Raises:
            UnknownName: with the nearest name.
            NameClash: two installed packages have such a card.
        """
        for claimed in (name, self.aliases.get(name, name)):
            if claimed in self.clashes:
                one, two = self.clashes[claimed]
                raise NameClash(f"two packages have a card '{claimed}': {one} and {two}; uninstall one of them")
        name = self.aliases.get(name, name)
        if name not in self.cards:
            vendor = name.partition("/")[0] if "/" in name else ""
            hint = f"is the package of '{vendor}' installed?" if vendor else "see `zoo list`"
            raise UnknownName("model", name, [*self.cards, *self.aliases], hint)
        return self.cards[name]


def builtin_path() -> Path:
    """Return our own registry.toml: beside the package in a wheel, at the repository's root in a checkout."""
    here = Path(__file__).parent
    inside = here / "registry.toml"
    return inside if inside.exists() else here.parent / "registry.toml"


@functools.cache
def catalogue() -> Catalogue:
    """Return the cards of this environment; a third party's broken file is one warning and stops nothing."""
    found = Catalogue()
    found.read(builtin_path(), "image-zoo")
    seen: set[Path] = set()
    for origin in plugins.installed().origins.values():
        folder = origin.folder()
        path = folder / "registry.toml" if folder else None
        if path is None or path in seen or origin.distribution == "image-zoo" or not path.exists():
            continue
        seen.add(path)
        try:
            found.read(path, origin.distribution)
        except ConfigError as error:
            warnings.warn(f"catalogue of {origin} is left out: {error}", stacklevel=2)
    return found

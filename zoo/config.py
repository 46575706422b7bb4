"""Strict, typed configs: from and to plain dicts and TOML, and overrides as on the command line.

One converter (cattrs) that forbids unknown keys and takes scalars exactly: cattrs' defaults would turn "false" into
True and 3.7 into 3. `None` is written "none" where a format has no null.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
from cattrs.errors import ClassValidationError, ForbiddenExtraKeysError, IterableValidationError
from cattrs.gen import make_dict_structure_fn

from zoo.errors import ConfigError, suggest

C = TypeVar("C")
Path = tuple[str, ...]
Overrides = Iterable[str] | Mapping[str, Any]


def _exact(*accepted: type, name: str) -> Any:
    def hook(value: Any, target: Any) -> Any:
        if type(value) not in accepted:
            raise TypeError(f"expected {name}, got {value!r}")
        return target(value)

    return hook


def _is_optional(target: Any) -> bool:
    return get_origin(target) in (Union, types.UnionType) and type(None) in get_args(target)


def _optional(value: Any, target: Any) -> Any:
    if value is None or value == "none":
        return None
    rest = [t for t in get_args(target) if t is not type(None)]
    inner: Any = Union[tuple(rest)] if len(rest) > 1 else rest[0]  # noqa: UP007
    return _converter.structure(value, inner)


def _literal(value: Any, target: Any) -> Any:
    choices = get_args(target)
    if not any(type(value) is type(c) and value == c for c in choices):
        near = suggest(str(value), map(str, choices))
        raise TypeError(f"expected one of {', '.join(map(repr, choices))}, got {value!r}{near}")
    return value


def _tuple(value: Any, target: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise TypeError(f"expected {describe(target)}, got {value!r}")
    items = get_args(target)
    if len(items) == 2 and items[1] is Ellipsis:
        return tuple(_converter.structure(v, items[0]) for v in value)
    if len(items) != len(value):
        raise TypeError(f"expected {len(items)} values, got {len(value)}")
    return tuple(_converter.structure(v, t) for v, t in zip(value, items, strict=True))


def _class(cls: type) -> Any:
    inner: Any = make_dict_structure_fn(cls, _converter, _cattrs_forbid_extra_keys=True)

    def hook(value: Any, target: Any) -> Any:
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(f"expected the fields of {cls.__name__}, got {value!r}")
        return inner(value, target)

    return hook


def _dict(value: Any, target: Any) -> Any:
    if not isinstance(value, Mapping):
        raise TypeError(f"expected a table, got {value!r}")
    key, item = get_args(target)
    return {_converter.structure(k, key): _converter.structure(v, item) for k, v in value.items()}


_converter = cattrs.Converter(forbid_extra_keys=True)
_converter.register_structure_hook_factory(attrs.has, _class)
_converter.register_structure_hook(bool, _exact(bool, name="true or false"))
_converter.register_structure_hook(int, _exact(int, name="an integer"))
_converter.register_structure_hook(float, _exact(float, int, name="a number"))
_converter.register_structure_hook(str, _exact(str, name="a string"))
_converter.register_structure_hook_func(lambda t: get_origin(t) is tuple, _tuple)
_converter.register_structure_hook_func(lambda t: get_origin(t) is Literal, _literal)
_converter.register_structure_hook_func(lambda t: get_origin(t) is dict, _dict)
_converter.register_structure_hook_func(_is_optional, _optional)
_converter.register_structure_hook_func(lambda t: t is Any, lambda value, _: None if value == "none" else value)


def describe(target: Any) -> str:
    """Return a type as a reader would write it."""
    return target.__name__ if isinstance(target, type) else str(target).replace("typing.", "")


def fields(cls: type) -> dict[str, Any]:
    """Return field name -> type of an attrs class."""
    hints = typing.get_type_hints(cls)
    return {name: hints[name] for name in attrs.fields_dict(cls)}


def structure(data: Mapping[str, Any], cls: type[C], where: str = "") -> C:
    """Make a config of class `cls` from plain data.

    Raises:
        ConfigError: an unknown field (with the nearest name), a wrong type or a value out of range; the text begins
            with the field's path under `where`.
    """
    try:
        return _converter.structure(dict(data), cls)
    except (ClassValidationError, IterableValidationError) as group:
        raise ConfigError(_explain(group, where)) from None


def value(data: Any, target: Any, where: str) -> Any:
    """Make one field's value of type `target`; raises ConfigError beginning with `where`."""
    try:
        return _converter.structure(data, target)
    except (ClassValidationError, IterableValidationError) as group:
        raise ConfigError(_explain(group, where)) from None
    except (TypeError, ValueError) as cause:
        raise ConfigError(f"{where}: {cause}") from None


def _explain(error: BaseException, path: str) -> str:
    """Walk to the first leaf of a cattrs error group and say it in one line, with its path."""
    if isinstance(error, ClassValidationError | IterableValidationError):
        inner = error.exceptions[0]
        notes = [n for n in getattr(inner, "__notes__", []) if hasattr(n, "name")]
        name = str(notes[0].name) if notes else ""
        return _explain(inner, f"{path}.{name}".strip(".") if name else path)
    prefix = f"{path}: " if path else ""
    if isinstance(error, ForbiddenExtraKeysError):
        wrong = sorted(error.extra_fields)[0]
        return no_such_field(f"{path}.{wrong}".strip("."), wrong, attrs.fields_dict(error.cl))
    if isinstance(error, KeyError):
        return f"{prefix}the field {error} is missing"
    return f"{prefix}{' '.join(str(error.args[0] if error.args else error).split())}"


def no_such_field(path: str, name: str, known: Iterable[str]) -> str:
    """Return the line for an unknown field."""
    known = list(known)
    return f"{path}: no such field{suggest(name, known) or '; it has ' + ', '.join(known)}"


def plain(config: Any) -> Any:
    """Return a config, or any value in one, as dicts, lists and scalars; `structure` is the way back."""
    if attrs.has(type(config)):
        return {name: plain(getattr(config, name)) for name in attrs.fields_dict(type(config))}
    if isinstance(config, tuple | list):
        return [plain(item) for item in config]
    if isinstance(config, Mapping):
        return {key: plain(item) for key, item in config.items()}
    return config


def without_none(data: Any) -> Any:
    """Return plain data with every None written "none", for TOML."""
    if isinstance(data, dict):
        return {key: without_none(item) for key, item in data.items()}
    if isinstance(data, list):
        return [without_none(item) for item in data]
    return "none" if data is None else data


def parse_overrides(overrides: Overrides) -> dict[Path, Any]:
    """Return path -> value of "a.b=3" strings or of a mapping {"a.b": 3}; later ones win.

    Raises:
        ConfigError: a string has no "=".
    """
    if isinstance(overrides, str):
        overrides = [overrides]
    if isinstance(overrides, Mapping):
        return {tuple(key.split(".")): item for key, item in overrides.items()}
    parsed: dict[Path, Any] = {}
    for text in overrides:
        key, equals, item = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override '{text}' is not of the form field=value, such as prior.depth=2")
        parsed[tuple(key.strip().split("."))] = parse_scalar(item.strip())
    return parsed


def parse_scalar(text: str) -> Any:
    """Return the value of a command-line text: JSON where it is JSON, None for "none", else the text itself."""
    if text.lower() in ("none", "null"):
        return None
    try:
        return json.loads(text)
    except ValueError:
        pass
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    return text

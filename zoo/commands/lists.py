"""Options that take several numbers, with commas between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from zoo.errors import ConfigError

N = TypeVar("N", int, float)


def whole_numbers(text: str, option: str, example: str, least: int) -> tuple[int, ...]:
    """Return "8,1,8" as (8, 1): each once, as they come.

    Raises:
        ConfigError: it is no list of whole numbers from `least` up; `example` is shown.
    """
    found = _read(text, int, option, example)
    if min(found) < least:
        raise ConfigError(f"{option}: numbers start at {least}, got '{text}'")
    return found


def amounts(text: str, option: str, example: str) -> tuple[float, ...]:
    """Return "0,1,2.5" as (0.0, 1.0, 2.5): each once, as they come.

    Raises:
        ConfigError: it is no list of finite numbers from 0 up; `example` is shown.
    """
    found = _read(text, float, option, example)
    if not all(0 <= number < math.inf for number in found):
        raise ConfigError(f"{option}: numbers are 0 or more, got '{text}'")
    return found


def _read(text: str, kind: Callable[[str], N], option: str, example: str) -> tuple[N, ...]:
    try:
        return tuple(dict.fromkeys(kind(item) for item in text.split(",")))
    except ValueError:
        raise ConfigError(f"{option}: expected numbers such as {example}, got '{text}'") from None

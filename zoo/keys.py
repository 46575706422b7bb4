"""Taking a state dict apart by its keys, until nothing is left: what the readers of public layouts do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zoo.errors import BadWeights, suggest

if TYPE_CHECKING:
    from torch import Tensor


def take(whose: str, left: dict[str, Tensor], key: str, state: Mapping[str, Any]) -> Tensor:
    """Take a tensor out of what is `left` of a state dict.

    Raises:
        BadWeights: it is not there; "`whose` lack ...", with the nearest key of `state`.
    """
    if key not in left:
        raise BadWeights(f"{whose} lack '{key}'{suggest(key, state)}")
    return left.pop(key)


def nothing_left(whose: str, left: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse what is left over.

    Raises:
        BadWeights: there is something; "`whose` have an unexpected ...", with the nearest of the `known` keys.
    """
    for key in left:
        raise BadWeights(f"{whose} have an unexpected '{key}'{suggest(key, known)}")

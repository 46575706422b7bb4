"""Prompts as a condition: captions as token ids, labels, and what is drawn without one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from zoo.errors import ConfigError
from zoo.interfaces import Cond


def condition(
    prompts: Sequence[Any], reads: str, *, card: str, tokenizer: Any, classes: int | None, device: torch.device
) -> Cond:  # fmt: skip
    """Return the condition of each prompt; None drops it.

    Args:
        prompts: strings are captions, integers labels, None is unconditional.
        reads: what the part reads: "nothing", "label", or token ids.
        card: of the system, for messages.
        tokenizer: makes ids of captions.
        classes: number of labels.
        device: where the parts are.

    Raises:
        ConfigError: there is no prompt, or one of a kind that the part does not read.
    """
    if not prompts:
        raise ConfigError("no prompt was given")
    drop = torch.tensor([p is None for p in prompts], device=device)
    given = [p for p in prompts if p is not None]
    if reads == "nothing":
        if given:
            raise ConfigError(f"'{card}' reads no prompt; pass None for each picture, not {given[0]!r}")
        return Cond(drop=drop)
    if reads == "label":
        _check_labels(given, card, classes or 0)
        return Cond(label=torch.tensor([0 if p is None else p for p in prompts], device=device), drop=drop)
    wrong = [p for p in given if not isinstance(p, str)]
    if wrong:
        raise ConfigError(f"'{card}' reads captions; {wrong[0]!r} is not a string")
    dropped = given[0] if given else ""  # any caption will do
    with warnings.catch_warnings():
        if not given:
            warnings.simplefilter("ignore")  # that it is empty is meant
        ids, mask = tokenizer.encode([dropped if p is None else p for p in prompts])
    return Cond(ids=ids.to(device), mask=mask.to(device), drop=drop)


def _check_labels(given: Sequence[Any], card: str, classes: int) -> None:
    for p in given:
        if isinstance(p, bool) or not isinstance(p, int) or not 0 <= p < classes:
            raise ConfigError(f"'{card}' reads labels 0 to {classes - 1}; {p!r} is not one")

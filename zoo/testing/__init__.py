"""The conformance kit: every check of the plugin interface that applies to a plugin, in three lines.

    # tests/test_acme.py
    from zoo.testing import conformance

    test_conformance = conformance("acme")

`conformance` takes the entry-point names of plugins and returns a parametrised pytest test: one case for each card
and check. Cards under a million parameters are built and run; larger ones are counted on the meta device and their
configs are checked, so every family should have one small variant.

Without pytest: `for name, run in cases("acme"): run()`. Importing this imports neither torch nor pytest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

from zoo import plugins
from zoo.catalogue import Card, catalogue

SMALL = 1_000_000
"""Cards with fewer parameters are built and run."""


def conformance(*names: str) -> Any:
    """Return a pytest test that runs every check on every card of these plugins.

    Raises:
        NotInstalled: a plugin is not installed here.
    """
    import pytest

    runs = [pytest.param(run, id=f"{name}-{label}") for name in names for label, run in cases(name)]

    @pytest.mark.parametrize("check", runs)
    def test_conformance(check: Callable[[], None]) -> None:
        check()

    return test_conformance


def cases(plugin: str) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield (label, check) of one plugin; a check raises AssertionError with what is wrong in one sentence.

    Raises:
        NotInstalled: the plugin is not installed here.
    """
    from zoo.testing import configs, kit, packages

    plugins.require(plugin, None)
    for of_package in packages.CHECKS:
        yield of_package.__name__, functools.partial(of_package, plugin)
    for card in cards(plugin):
        for of_config in configs.CHECKS:
            yield f"{card.name}-{of_config.__name__}", functools.partial(of_config, card)
        if card.params < SMALL:
            for of_part in behaviours(card.kind):
                yield f"{card.name}-{of_part.__name__}", functools.partial(kit.run, of_part, card.name)


def cards(plugin: str) -> list[Card]:
    """Return the plugin's cards."""
    return [card for card in catalogue().cards.values() if card.plugin == plugin]


def behaviours(interface: str) -> list[Callable[[Any], None]]:
    """Return the checks of a built object of this interface; each takes a `zoo.testing.kit.Case`."""
    from zoo.testing import (
        codebooks,
        denoisers,
        generators,
        latents,
        losses,
        modules,
        priors,
        rerankers,
        text_encoders,
        tokenizers,
    )

    own = {
        "tokenizer": tokenizers.CHECKS,
        "text_encoder": text_encoders.CHECKS,
        "codebook": codebooks.CHECKS,
        "latent": latents.CHECKS,
        "prior": priors.CHECKS,
        "denoiser": denoisers.CHECKS,
        "reranker": rerankers.CHECKS,
        "generator": generators.CHECKS,
    }[interface]
    shared = modules.SYSTEM_CHECKS if interface == "generator" else [*modules.CHECKS, *losses.CHECKS]
    return [*shared, *own]


__all__ = ["SMALL", "behaviours", "cards", "cases", "conformance"]

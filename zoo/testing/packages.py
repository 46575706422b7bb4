"""Checks of a plugin as a package: what it imports, states and names."""

from __future__ import annotations

import subprocess
import sys

from zoo import plugins
from zoo.specs import ZOO_API, DatasetSpec, ModelSpec, Spec
from zoo.testing import cards
from zoo.testing.kit import need


def _specs(plugin: str) -> tuple[Spec, ...]:
    return plugins.installed().specs(plugin)


def _modules(plugin: str) -> list[str]:
    """Return the plugin's module and those of its configs and variants."""
    models = [spec for spec in _specs(plugin) if isinstance(spec, ModelSpec)]
    paths = [path for spec in models for path in (spec.config, *spec.variants.values())]
    return [plugins.installed().origins[plugin].module, *sorted({path.partition(":")[0] for path in paths})]


def imports_no_torch(plugin: str) -> None:
    """The plugin, its configs and its variants import without torch, so that listing stays instant."""
    lines = "; ".join(f"import {module}" for module in _modules(plugin))
    code = f"import sys; sys.path[:0] = {sys.path!r}; {lines}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    need(not done.stderr, f"{_modules(plugin)} do not import on their own: {done.stderr[-2000:]}")
    need(done.returncode == 0, f"one of {_modules(plugin)} imports torch; only what `build` names may")


def states_its_api(plugin: str) -> None:
    """The plugin states the interface version it was written for, and returns specs."""
    module = sys.modules.get(plugins.installed().origins[plugin].module)
    need(_specs(plugin), f"'{plugin}' contributes nothing: zoo_specs returned no spec")
    need(getattr(module, "ZOO_API", ZOO_API) == ZOO_API, f"ZOO_API must be {ZOO_API}")


def every_variant_has_a_card(plugin: str) -> None:
    """Each variant is in the plugin's registry.toml, and each card names a variant of its kind."""
    models = [spec for spec in _specs(plugin) if isinstance(spec, ModelSpec)]
    variants = {variant: spec.interface for spec in models for variant in spec.variants}
    named = {card.variant: card for card in cards(plugin)}
    missing = sorted(variants.keys() - named.keys())
    need(not missing, f"variants without a card in registry.toml: {', '.join(missing)}")
    unknown = sorted(named.keys() - variants.keys())
    need(not unknown, f"cards without a variant: {', '.join(unknown)}")
    for variant, card in named.items():
        need(card.kind == variants[variant], f"card '{card.name}' is a {card.kind}, its spec a {variants[variant]}")


def names_are_well_formed(plugin: str) -> None:
    """Names are lower-case kebab; a third party's begin with its vendor: "acme/uniform"."""
    builtin = plugins.installed().origins[plugin].distribution == "image-zoo"
    for card in cards(plugin):
        vendor, slash, name = card.name.rpartition("/")
        words = name.replace(".", "").split("-")  # a size may have a point: dalle-5.6b
        kebab = all(word.isalnum() and word == word.lower() for word in words)
        need(kebab, f"'{card.name}' is not lower-case kebab")
        need(builtin or (slash and vendor), f"'{card.name}' needs its vendor's name: 'vendor/{card.name}'")


def builders_import(plugin: str) -> None:
    """Everything a spec names exists."""
    from zoo.specs import locate

    for spec in _specs(plugin):
        paths = [getattr(spec, "build", None)]
        if isinstance(spec, DatasetSpec) and spec.needs is None:  # another may wait for its optional extra
            paths.append(spec.open)
        if isinstance(spec, ModelSpec):
            paths += [spec.config, *spec.variants.values(), *spec.interop.values(), *spec.exports.values()]
        for path in filter(None, paths):
            locate(path)


CHECKS = [
    states_its_api,
    imports_no_torch,
    every_variant_has_a_card,
    names_are_well_formed,
    builders_import,
]

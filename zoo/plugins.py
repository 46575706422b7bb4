"""Finding and loading plugins, each on its own.

A plugin is an entry point of the group `zoo`. None is imported before it is needed, and one that fails is reported
with its distribution and version, becomes the cause of the error only when it is asked for, and stops no other.
(pluggy's own bulk loader isolates nothing and its hook results carry no origin, so entry points are loaded one by
one and implementations are called one by one.)
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import pluggy

from zoo import hookspecs
from zoo.errors import NameClash, NotInstalled, PluginFailed, UnknownName, WrongApi, ZooError
from zoo.specs import ZOO_API, Spec

GROUP = "zoo"
CORE = "zoo"
"""The core's own contributions (datasets, the torch engine) come through the same hook, under this name."""


@attrs.frozen(kw_only=True)
class Origin:
    """Where a plugin comes from; known without importing it."""

    name: str
    module: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"'{self.name}' ({self.distribution} {self.version})"

    def folder(self) -> Path | None:
        """Return the folder of the plugin's top package, without importing it."""
        try:
            spec = importlib.util.find_spec(self.module.partition(".")[0])
        except (ImportError, ValueError):
            return None
        places = list(spec.submodule_search_locations or []) if spec else []
        return Path(places[0]) if places else None


class Plugins:
    """All installed plugins. Use the one instance that `installed()` returns."""

    def __init__(self) -> None:
        self.manager = pluggy.PluginManager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        self.origins: dict[str, Origin] = {}
        self.clashes: dict[str, tuple[Origin, Origin]] = {}
        self._specs: dict[str, tuple[Spec, ...]] = {}
        self._failed: dict[str, ZooError] = {}
        self._warned: set[str] = set()
        version = metadata.version("image-zoo")
        self.origins[CORE] = Origin(name=CORE, module="zoo.builtin", distribution="image-zoo", version=version)
        for point in metadata.entry_points(group=GROUP):
            self._add(point)

    def _add(self, point: metadata.EntryPoint) -> None:
        dist = point.dist
        origin = Origin(
            name=point.name,
            module=point.value,
            distribution=dist.name if dist else "unknown",
            version=dist.version if dist else "?",
        )
        known = self.origins.get(point.name)
        if known is None:
            self.origins[point.name] = origin
        elif known != origin:  # one distribution can be seen twice on sys.path
            self.clashes[point.name] = (known, origin)

    def specs(self, name: str) -> tuple[Spec, ...]:
        """Load one plugin and return what it contributes.

        Raises:
            UnknownName, NotInstalled: no plugin of this name is installed.
            NameClash: two distributions claim the name.
            PluginFailed, WrongApi: it is installed and cannot be used; the cause is chained.
        """
        if name in self._failed:
            raise self._failed[name]
        if name not in self._specs:
            try:
                self._specs[name] = self._load(name)
            except ZooError as error:
                self._failed[name] = error
                raise
        return self._specs[name]

    def _load(self, name: str) -> tuple[Spec, ...]:
        if name in self.clashes:
            one, two = self.clashes[name]
            raise NameClash(f"two packages claim the plugin name '{name}': {one} and {two}; uninstall one of them")
        if name not in self.origins:
            raise UnknownName("plugin", name, self.origins, "see `zoo plugins`")
        origin = self.origins[name]
        try:
            module = importlib.import_module(origin.module)
        except (Exception, SystemExit) as cause:
            raise PluginFailed(
                f"plugin {origin} failed to import: {type(cause).__name__}: {_one_line(cause)}; see `zoo doctor`"
            ) from cause
        self._check_api(origin, module)
        return self._register(origin, module)

    def _check_api(self, origin: Origin, module: Any) -> None:
        api = getattr(module, "ZOO_API", None)
        if api == ZOO_API:
            return
        said = "states no ZOO_API" if api is None else f"is written for plugin API {api}"
        raise WrongApi(
            f"plugin {origin} {said}, this zoo has API {ZOO_API}; "
            f"try `pip install --upgrade {origin.distribution} image-zoo`"
        )

    def _register(self, origin: Origin, module: Any) -> tuple[Spec, ...]:
        try:
            self.manager.register(module, name=origin.name)
            self.manager.check_pending()
            hook = self.manager.subset_hook_caller("zoo_specs", self._others(origin.name))
            found = tuple(spec for specs in hook() for spec in specs)
            for spec in found:
                if not isinstance(spec, Spec):
                    raise TypeError(f"zoo_specs returned {spec!r}, which is no spec of zoo.specs")
            return found
        except Exception as cause:
            if self.manager.has_plugin(origin.name):
                self.manager.unregister(name=origin.name)
            raise PluginFailed(
                f"plugin {origin} failed: {type(cause).__name__}: {_one_line(cause)}; see `zoo doctor`"
            ) from cause

    def _others(self, name: str) -> list[Any]:
        return [plugin for other, plugin in self.manager.list_name_plugin() if other != name]

    def all_specs(self) -> Iterator[tuple[Origin, Spec]]:
        """Yield every spec of every plugin that loads; each that does not is reported once, as a warning."""
        for name, origin in self.origins.items():
            try:
                found = self.specs(name)
            except ZooError as error:
                if name not in self._warned:
                    self._warned.add(name)
                    warnings.warn(str(error), stacklevel=2)
                continue
            for spec in found:
                yield origin, spec

    def find(self, kind: type, name: str, what: str) -> Any:
        """Return the spec of class `kind` with this name.

        Raises:
            UnknownName: none has it.
            NameClash: several plugins have it.
        """
        found = [(origin, spec) for origin, spec in self.all_specs() if isinstance(spec, kind)]
        hits = [(origin, spec) for origin, spec in found if getattr(spec, "name", None) == name]
        if len(hits) > 1:
            raise NameClash(f"two plugins claim the {what} '{name}': {hits[0][0]} and {hits[1][0]}; uninstall one")
        if not hits:
            raise UnknownName(what, name, [getattr(spec, "name", "") for _, spec in found])
        return hits[0][1]

    def call(self, hook: str, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """Call every implementation of `hook` by itself; yield (plugin, result) and warn of each that fails."""
        list(self.all_specs())
        for implementation in getattr(self.manager.hook, hook).get_hookimpls():
            caller = self.manager.subset_hook_caller(hook, self._others(implementation.plugin_name))
            try:
                result = caller(**arguments)
            except Exception as cause:
                key = f"{implementation.plugin_name}:{hook}"
                if key not in self._warned:
                    self._warned.add(key)
                    warnings.warn(
                        f"plugin '{implementation.plugin_name}' failed in {hook}: {type(cause).__name__}: {cause}",
                        stacklevel=2,
                    )
                continue
            yield implementation.plugin_name, result


def require(plugin: str, pip: str | None) -> None:
    """Raise NotInstalled with the pip line when no installed package provides `plugin`."""
    if plugin not in installed().origins:
        raise NotInstalled(f"plugin '{plugin}' is not installed; type: pip install {pip or plugin.replace('_', '-')}")


@functools.cache
def installed() -> Plugins:
    """Return the plugins of this environment; found once, loaded when needed."""
    return Plugins()


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())

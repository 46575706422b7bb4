"""What a plugin may contribute, as pure data. Code is named as "module:attribute" and imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import attrs

ZOO_API = 1
"""Version of the plugin interface: hooks, specs and the contracts of `zoo.interfaces`."""


@attrs.frozen(kw_only=True)
class ModelSpec:
    """One architecture: a config class, what builds it, and its named variants."""

    interface: str
    """The interface the built object has: "codebook", "prior" ... or "generator" for a whole system."""
    config: str
    """"module:Class" of the attrs config. Importing it must not import torch."""
    build: str
    """"module:callable": `(config, **children) -> object`, a child by the name of its `Ref` field."""
    variants: Mapping[str, str]
    """Variant name -> "module:function" that returns a config."""
    interop: Mapping[str, str] = attrs.field(factory=dict)
    """Public layout -> "module:function" `(state_dict, config) -> state_dict`, for `zoo import`.

    The function renames, reshapes and joins tensors and never reads their values: which layout a file has is found on
    the meta device. It raises BadWeights for a key that is missing or left over, and drops what is no weight. A part
    with `vocabulary_files(place) -> {name: file}` is read from the bytes of these files instead, uint8 by name; its
    functions read them where they are not on the meta device."""
    exports: Mapping[str, str] = attrs.field(factory=dict)
    """The way back, by the same names, for `zoo export --layout` and for messages that name the file's own keys."""
    folders: Mapping[str, str] = attrs.field(factory=dict)
    """Layout of a folder -> "module:function" `(state_dict, config, image_size) -> {file name: content}`, for
    `zoo export --layout` into a folder: what other programs load by one call. Content is a state dict, or anything
    JSON holds."""
    described: Mapping[str, str] = attrs.field(factory=dict)
    """Layout -> "module:function" `(description, config)`, which raises BadWeights where the `config.json` beside
    public weights says of them what no shape shows and this model does not do."""
    left_out: str = ""
    """What the public files do not hold and what to do about it: a sentence that `zoo import` prints."""


@attrs.frozen(kw_only=True)
class DatasetSpec:
    """One kind of data: `open(path, *, split, size, transform) -> Dataset`, path being what follows "name:"."""

    name: str
    open: str
    """"module:callable"."""
    summary: str = ""
    needs: str | None = None
    """The pip extra to install when an import fails: "emoji" for `pip install image-zoo[emoji]`."""


@attrs.frozen(kw_only=True)
class EngineSpec:
    """One training engine: `build(options) -> Engine`."""

    name: str
    build: str
    summary: str = ""


@attrs.frozen(kw_only=True)
class ReducerSpec:
    """One gradient reducer, asked for as "name" or "name:settings", such as "powersgd:rank=4"."""

    name: str
    build: str
    """"module:callable" `(options) -> Reducer`, which reads `options.reducer` and `options.seed`."""
    config: str
    """"module:callable" `(settings) -> config`, settings being what follows "name:"; importing it must not import
    torch. The config has the reducer's `cost(shards, ranks) -> Traffic`."""
    summary: str = ""


Spec = ModelSpec | DatasetSpec | EngineSpec | ReducerSpec


def locate(path: str) -> Any:
    """Import what "module:attribute" names."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)

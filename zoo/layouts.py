"""Public layouts of weights: which one a state dict has, and the way there and back.

A layout is a set of keys and shapes; a model's spec names the functions between it and ours. Which one a checkpoint
has is found by trying each on the meta device, where nothing is read and no memory is taken. `OWN` is the model's own
names, which `zoo export` writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from zoo.catalogue import catalogue
from zoo.construct import construct
from zoo.errors import BadWeights, PartMismatch, UnknownName, ZooError
from zoo.resolution import Node, resolve_tree
from zoo.specs import ModelSpec, locate
from zoo.weights import mismatch

OWN = "zoo"
State = Mapping[str, Tensor]


@attrs.frozen
class Part:
    """A part whose weights come or go: its module is on the meta device and has shapes only."""

    role: str
    card: str
    plugin: str
    spec: ModelSpec
    config: Any
    module: nn.Module
    alone: bool
    """It is a card by itself, not a part of a system."""


def part_of(node: Node, config: Any, outline: Any, role: str | None = None) -> Part:
    """Return the part of this role; None: the one that a part's card is of.

    Args:
        node, config: what `resolve_tree` returned.
        outline: the system, built on the meta device.
        role: as in `outline.parts`; None of a system: the one part of its own family that reads public weights.

    Raises:
        UnknownName: there is no such part.
        PartMismatch: it is a system's, and which one is meant was not said.
    """
    alone = node.interface != "generator"
    if role is None and not alone:
        role = _main(node, outline)
    if role is None and not alone:
        public = _list(layouts_of(node)) or "none of them"
        raise PartMismatch(f"'{node.card}' is a whole system: say which part with --part; public weights: {public}")
    role = role or node.interface
    if role not in outline.parts:
        raise UnknownName(
            f"'{node.card}' has no such part: part", role, outline.parts, f"it has {_list(outline.parts)}"
        )
    steps = role.split(".")
    for step in steps[1:] if alone else steps:
        node, config = node.children[step], getattr(config, step).config
    if node.spec is None or not isinstance(outline.parts[role], nn.Module):
        raise BadWeights(f"'{role}' was given as an object: its weights are not the zoo's")
    return Part(role, node.card, node.plugin, node.spec, config, outline.parts[role], alone)


def _main(node: Node, outline: Any) -> str | None:
    """Return the part of the system's own family that reads public weights, a vocabulary aside; None: not just one."""
    own = [
        role for role, part in node.walk() if role and part.plugin == node.plugin and part.spec and part.spec.interop
    ]
    found = [role for role in own if not hasattr(outline.parts[role], "vocabulary_files")]
    return found[0] if len(found) == 1 else None


def layouts_of(node: Node) -> dict[str, list[str]]:
    """Return the public layouts that each part reads, by role; parts that read none are left out."""
    return {role: list(spec.interop) for role, spec in _specs(node).items() if spec.interop}


def find(part: Part, state: State, path: Any, layout: str | None = None) -> str:
    """Return the layout that a state dict has.

    Args:
        part: what the weights are for.
        state: a public checkpoint, flat; `path` is where it came from, for messages.
        layout: try this one alone.

    Raises:
        UnknownName: the part reads no such layout.
        BadWeights: no layout fits, or several do. Says what keeps the nearest from fitting, and which other card the
            weights are of.
    """
    names = [*part.spec.interop, OWN]
    if layout is not None and layout not in names:
        raise UnknownName("layout", layout, names, f"'{part.card}' reads {_list(names)}")
    names = names if layout is None else [layout]
    shadow = _shadow(state, path)
    tries = {name: _complaint(part, name, shadow) for name in names}
    fitting = [name for name, complaint in tries.items() if not complaint]
    fitting = [name for name in fitting if name != OWN] or fitting  # a public layout may have our names
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise BadWeights(f"{path}: fits '{part.card}' in several layouts ({_list(fitting)}); choose with --layout")
    lacking = {name: _lacking(part, name, shadow) for name in names}
    nearest = min(lacking, key=lambda name: lacking[name])
    tried = f"layout {nearest}" if len(names) == 1 else f"any layout ({_list(names)}); nearest is {nearest}"
    text = f"{path}: does not fit '{part.card}' in {tried}: {tries[nearest]}"
    if lacking[nearest] == 1 and _expected(part, nearest):
        text += f"; the file has keys like '{min(state)}'"
    raise BadWeights(text + _advice(part, names, shadow, path))


def read(part: Part, layout: str, state: State) -> dict[str, Tensor]:
    """Return the part's own state dict of one in a layout; raises what the plugin's function raises."""
    return dict(state) if layout == OWN else locate(part.spec.interop[layout])(state, part.config)


def write(part: Part, layout: str, state: State) -> dict[str, Tensor]:
    """Return a state dict in a layout of the part's own.

    Raises:
        UnknownName: the part is not written in such a layout.
        BadWeights, ConfigError: what the plugin's function raises.
    """
    known = [*part.spec.exports, OWN]
    if layout not in known:
        raise UnknownName("layout", layout, known, f"'{part.card}' is written in {_list(known)}")
    return dict(state) if layout == OWN else locate(part.spec.exports[layout])(state, part.config)


def dropped(part: Part, layout: str, state: State) -> list[str]:
    """Return the keys of a file in this layout that are no weights of the part, as far as the layout's are known."""
    expected = _expected(part, layout)
    return sorted(state.keys() - expected.keys()) if expected else []


def _shadow(state: State, path: Any) -> State:
    """Return the tensors without their values."""
    for key, x in state.items():
        if x.is_quantized or x.layout is not torch.strided:
            raise BadWeights(f"{path}: '{key}' is {'quantised' if x.is_quantized else 'sparse'}, not a plain tensor")
    return {key: torch.empty(x.shape, dtype=x.dtype, device="meta") for key, x in state.items()}


def _complaint(part: Part, layout: str, shadow: State) -> str:
    """Return why a state dict is not the part's in this layout, in one line; empty: it is."""
    try:
        complaint = mismatch(part.module, read(part, layout, shadow))
    except Exception as error:  # another variant's shapes may fail anywhere in a plugin's function
        complaint = " ".join(str(error).split())[:300] or type(error).__name__
    return complaint and (_other_shape(part, layout, shadow) or complaint)


def _other_shape(part: Part, layout: str, shadow: State) -> str:
    """Return which of the file's keys has another shape than the part's, where most of the part's keys are there."""
    expected = _expected(part, layout) if layout != OWN else None  # `mismatch` has said so in our names
    shared = [key for key in expected or () if key in shadow]
    if expected and 2 * len(shared) > len(expected):
        for key in shared:
            if expected[key].shape != shadow[key].shape:
                return f"'{key}' has shape {list(shadow[key].shape)}, the model's is {list(expected[key].shape)}"
    return ""


def _expected(part: Part, layout: str) -> State | None:
    """Return the part's weights, without values, as a file in this layout has them; None: that is not known."""
    try:
        return write(part, layout, part.module.state_dict())
    except ZooError:
        return None


def _lacking(part: Part, layout: str, shadow: State) -> float:
    """Return the share of the layout's keys that a file lacks; 1 where its keys are not known."""
    expected = _expected(part, layout)
    return len(expected.keys() - shadow.keys()) / len(expected) if expected else 1.0


def _advice(part: Part, names: list[str], shadow: State, path: Any) -> str:
    """Return what to type when the weights are of another card of the same architecture."""
    for other in _siblings(part):
        if any(name in (*other.spec.interop, OWN) and not _complaint(other, name, shadow) for name in names):
            if part.alone:
                return f"; these are weights of '{other.card}': zoo import {other.card} {path} --out RUN"
            return f"; these are weights of '{other.card}': add --set {part.role}={other.card}"
    return ""


def _siblings(part: Part) -> Iterator[Part]:
    """Yield the other cards of the architecture, as parts of their own."""
    for card in catalogue().cards.values():
        if card.name != part.card and card.plugin == part.plugin and card.variant in part.spec.variants:
            node, config = resolve_tree(card.name)
            yield part_of(node, config, construct(node, config, device="meta"))


def _specs(node: Node) -> dict[str, ModelSpec]:
    """Return the spec of each part, by role."""
    top = "" if node.interface == "generator" else node.interface
    return {role: part.spec for role, part in node.walk(top) if role and part.spec is not None}


def _list(names: Any) -> str:
    return ", ".join(names)

"""Checks of a card and its config; nothing is built but on the meta device."""

from __future__ import annotations

import json
import tomllib
from typing import Any

import attrs
import tomli_w

from zoo.catalogue import Card
from zoo.config import fields, plain, structure, without_none
from zoo.parts import Facts, Recipe
from zoo.resolution import bind, dump, model_spec, resolve_tree, undump
from zoo.specs import locate
from zoo.testing.kit import need


def _variant(card: Card) -> Any:
    return locate(model_spec(card).variants[card.variant])()


def config_is_frozen(card: Card) -> None:
    """The variant returns a frozen, keyword-only attrs config of the class its spec names."""
    config, cls = _variant(card), locate(model_spec(card).config)
    need(type(config) is cls, f"variant '{card.variant}' returns {type(config).__name__}, its spec says {cls.__name__}")
    need(attrs.has(cls), f"{cls.__name__} is no attrs class")
    need(all(f.kw_only for f in attrs.fields(cls)), f"{cls.__name__} has positional fields; use kw_only=True")
    try:
        setattr(config, attrs.fields(cls)[0].name, None)
    except attrs.exceptions.FrozenInstanceError:
        return
    raise AssertionError(f"{cls.__name__} can be changed; use @attrs.frozen")


def config_survives_writing(card: Card) -> None:
    """The config turns into dict, JSON and TOML and back without loss."""
    config = _variant(card)
    data = plain(config)
    for name, back in (
        ("dict", data),
        ("JSON", json.loads(json.dumps(data, allow_nan=False))),
        ("TOML", tomllib.loads(tomli_w.dumps(without_none(data)))),
    ):
        need(structure(back, type(config)) == config, f"'{card.name}' is another config after {name} and back")


def resolved_config_survives_writing(card: Card) -> None:
    """The bound config, with all its parts, is the same after a run folder's TOML and back."""
    node, config = resolve_tree(card.name)
    text = tomli_w.dumps(without_none(dump(config, node)))
    need(bind(undump(tomllib.loads(text))) == config, f"'{card.name}' is another config after run.toml and back")


def config_answers_facts(card: Card) -> None:
    """The config of a part answers `facts(image_size)`, and its training recipe is a `Recipe`."""
    if card.kind == "generator":
        return
    _, config = resolve_tree(card.name)
    need(hasattr(config, "facts"), f"the config of '{card.name}' has no facts(image_size)")
    size = getattr(config, "image_size", None) or card.resolution or 32
    need(isinstance(config.facts(size), Facts), f"facts() of '{card.name}' returns no zoo.parts.Facts")
    if "train" in fields(type(config)):
        need(isinstance(config.train, Recipe), f"the field `train` of '{card.name}' is no Recipe")


def card_counts_the_parameters(card: Card) -> None:
    """`params` on the card equals what building makes, and building on the meta device takes no memory."""
    from zoo.construct import construct, count

    node, config = resolve_tree(card.name)
    built = construct(node, config, device="meta")
    made = sum(count(part) for part in built.parts.values())
    need(card.params == made, f"the card of '{card.name}' says {card.params} parameters, building makes {made}")
    for role, part in built.parts.items():
        real = [name for name, p in getattr(part, "named_parameters", list)() if not p.is_meta]
        need(not real, f"{role} of '{card.name}' allocates {real[:3]} on the meta device")


def planned_parameters_are_the_built_ones(card: Card) -> None:
    """`config.cost(batch)` names every parameter of the part in order, with its shape and the block it belongs to."""
    from torch import nn

    from zoo.construct import construct
    from zoo.nn.residual import residuals

    if card.kind == "generator":
        return  # its parts have cards of their own
    node, config = resolve_tree(card.name)
    need(hasattr(config, "cost"), f"the config of '{card.name}' has no cost(batch); see zoo.cost")
    part = construct(node, config, device="meta").parts[card.kind]
    blocks: dict[str, str] = {}
    built: dict[str, tuple[int, ...]] = {}
    if isinstance(part, nn.Module):
        for name, block in residuals(part):  # inner blocks come after the outer ones that hold them
            blocks.update({f"{name}.branch.{inner}": name for inner, _ in block.branch.named_parameters()})
        built = {name: tuple(p.shape) for name, p in part.named_parameters()}
    cost = config.cost(1)
    planned = {w.name: w.shape for w in cost.weights}
    need(len(planned) == len(cost.weights), f"cost() of '{card.name}' names a parameter twice")
    first = next((name for name in (*built, *planned) if built.get(name) != planned.get(name)), None)
    need(first is None, f"parameter '{first}' of '{card.name}' is built as {built.get(first or '')} "
         f"and planned as {planned.get(first or '')}")  # fmt: skip
    need(list(built) == list(planned), f"cost() of '{card.name}' is not in the order of named_parameters()")
    for w in cost.weights:
        owner = blocks.get(w.name)
        need(w.block == owner, f"'{w.name}' of '{card.name}' is in residual block {owner} and planned in {w.block}")


CHECKS = [
    config_is_frozen,
    config_survives_writing,
    resolved_config_survives_writing,
    config_answers_facts,
    card_counts_the_parameters,
    planned_parameters_are_the_built_ones,
]

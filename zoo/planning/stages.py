"""What a stage of a system trains and what it only reads, from the resolved config. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs

from zoo.config import fields
from zoo.cost import Cost, Kept
from zoo.errors import ConfigError, PluginFailed, UnknownName
from zoo.parts import Recipe
from zoo.resolution import Node

MAIN = ("prior", "denoiser", "base")
"""Roles whose stage is planned unless another is asked for: the part a system is named after."""


@attrs.frozen(kw_only=True)
class Stage:
    """One stage: the part that is trained, and the work of those that are frozen under it."""

    part: str
    recipe: Recipe
    cost: Cost
    """Of the trained part."""
    frozen: dict[str, Cost]
    """Of the parts it reads, by role."""

    @property
    def frozen_params(self) -> int:
        """Parameters that are kept beside those that are trained."""
        return sum(cost.params for cost in self.frozen.values())

    @property
    def encode(self) -> int:
        """FLOPs of the frozen parts for one sample, where they are not read from a store."""
        return sum(cost.encode for cost in self.frozen.values())


def parts_of(node: Node, config: Any) -> Iterator[tuple[str, Node, Any]]:
    """Yield (role, node, bound config) of every part of a resolved tree, in the order of `zoo info`.

    Raises:
        ConfigError: a part is an object that was given.
    """
    if node.interface != "generator":
        yield from _below(node.interface, node, config)
        return
    for name, child in node.children.items():
        yield from _below(name, child, getattr(config, name).config)


def _below(role: str, node: Node, config: Any) -> Iterator[tuple[str, Node, Any]]:
    for name, child in node.children.items():
        yield from _below(f"{role}.{name}", child, getattr(config, name).config)
    yield role, node, config


def cost_of(role: str, node: Node, config: Any, batch: int = 1) -> Cost:
    """Return what a part costs in a global batch of so many samples.

    Raises:
        PluginFailed: its config does not say.
    """
    if not hasattr(config, "cost"):
        raise PluginFailed(
            f"{role} (card '{node.card}') cannot be planned: the config of plugin '{node.plugin}' has no "
            "cost(batch), see zoo.cost"
        )
    return config.cost(batch)


def stage_of(node: Node, config: Any, part: str | None = None, batch: int | None = None) -> Stage:
    """Return the stage of a system that is planned.

    Args:
        node, config: what `zoo.resolution.resolve_tree` returned.
        part: name of the stage; None: that of the prior, or the largest.
        batch: samples of the global batch; None: the recipe's.

    Raises:
        UnknownName: the system has no such part.
        ConfigError: nothing of it is trained.
    """
    parts = {role: (child, bound) for role, child, bound in parts_of(node, config)}
    learning = {role: at for role, at in parts.items() if "." not in role and "train" in fields(type(at[1]))}
    # In a system a text encoder has no stage of its own: it learns from what reads it.
    trained = {role: at for role, at in learning.items() if len(parts) == 1 or at[0].interface != "text_encoder"}
    if part is not None and part not in parts:
        raise UnknownName(f"part of '{node.card}'", part, trained, f"one of {', '.join(trained)}")
    if not trained or (part is not None and part not in trained):
        raise ConfigError(f"{part or node.card}: it is not trained by gradient, so there is nothing to plan")
    chosen = part or _largest(trained)
    recipe = trained[chosen][1].train
    # Parts that are trained with it, as a laptop's text encoder with the base of its cascade.
    roles = (*(config.together().get(chosen, ()) if hasattr(config, "together") else ()), chosen)
    cost = _joined([cost_of(role, *parts[role], batch or recipe.batch) for role in roles])
    frozen = {role: x for role, x in _frozen(chosen, parts).items() if role not in roles}
    return Stage(part=chosen, recipe=recipe, cost=cost, frozen=frozen)


def _joined(costs: list[Cost]) -> Cost:
    """Return what parts cost that are trained together."""
    if len(costs) == 1:
        return costs[0]
    return Cost(
        weights=tuple(w for cost in costs for w in cost.weights),
        flops=sum(cost.flops for cost in costs),
        kept=sum((cost.kept for cost in costs), Kept()),
        blocks=tuple(block for cost in costs for block in cost.blocks),
        largest=max(cost.largest for cost in costs),
        whole_batch=any(cost.whole_batch for cost in costs),
    )


def _largest(trained: dict[str, tuple[Node, Any]]) -> str:
    for role in MAIN:
        if role in trained:
            return role
    return max(trained, key=lambda role: cost_of(role, *trained[role]).params)


def _frozen(part: str, parts: dict[str, tuple[Node, Any]]) -> dict[str, Cost]:
    """Return the costs of what a stage reads: a prior or denoiser what turns pictures and captions into its input,
    every part its own nested ones."""
    draws = parts[part][0].interface in ("prior", "denoiser")
    read = ("tokenizer", "text_encoder", "codebook", "latent") if draws else ()
    roles = [r for r in parts if r != part and (r.startswith(f"{part}.") or r.partition(".")[0] in read)]
    return {role: cost_of(role, *parts[role]) for role in roles}

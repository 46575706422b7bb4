"""The optimiser of a recipe: parameter groups, and a learning rate that is a pure function of the step.

[1] I. Loshchilov, F. Hutter: Decoupled weight decay regularization. arXiv:1711.05101.
[2] I. Loshchilov, F. Hutter: SGDR: stochastic gradient descent with warm restarts. arXiv:1608.03983, eq. (5).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from zoo.errors import ConfigError
from zoo.parts import Recipe
from zoo.train import adam16


def rate(recipe: Recipe, step: int, steps: int) -> float:
    """Return the learning rate of update `step` (counted from 0) in a run of `steps` updates.

    Linear from zero to `lr` over `warmup` updates (the first update takes lr / warmup, not zero), then constant, or
    a half cosine [2] that reaches `lr_end` at `decay_steps` and stays there.
    """
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.schedule == "constant":
        return recipe.lr
    span = max(1, (recipe.decay_steps or steps) - recipe.warmup)
    progress = min(1.0, (step - recipe.warmup) / span)
    return recipe.lr_end + (recipe.lr - recipe.lr_end) * 0.5 * (1 + math.cos(math.pi * progress))


def parameters(stage: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that are trained, by name, in the order of construction."""
    return {name: p for name, p in stage.named_parameters() if p.requires_grad}


def whole_shape(p: nn.Parameter) -> tuple[int, ...]:
    """Return the shape of a parameter, of the whole one where it is partitioned (DeepSpeed notes it there)."""
    return tuple(getattr(p, "ds_shape", p.shape))


def groups(stage: Any, recipe: Recipe) -> list[dict[str, Any]]:
    """Return the optimiser's parameter groups.

    A part that has `param_groups(recipe)` decides for its own parameters; of the others, those of two dimensions
    or more have weight decay.

    Raises:
        ConfigError: a part's own groups leave a parameter out or name one twice.
    """
    special: list[dict[str, Any]] = []
    decayed, plain = [], []
    for child in stage.children():
        own = parameters(child)
        if hasattr(child, "param_groups"):
            theirs = [dict(group, params=list(group["params"])) for group in child.param_groups(recipe)]
            _check_cover(stage, own, theirs)
            special += theirs
        else:
            decayed += [p for p in own.values() if len(whole_shape(p)) >= 2]
            plain += [p for p in own.values() if len(whole_shape(p)) < 2]
    default = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    return [group for group in [*default, *special] if group["params"]]


def _check_cover(stage: Any, own: dict[str, nn.Parameter], theirs: list[dict[str, Any]]) -> None:
    seen = [id(p) for group in theirs for p in group["params"]]
    missing = [name for name, p in own.items() if seen.count(id(p)) != 1]
    if missing or len(seen) != len(own):
        which = f": '{missing[0]}'" if missing else ""
        raise ConfigError(f"{stage.part}: its param_groups must hold every trained parameter once{which}")


def optimizer(stage: Any, recipe: Recipe) -> torch.optim.Optimizer | None:
    """Return the stage's optimiser, or None when it has no parameter.

    Each group remembers its learning rate as a share of the recipe's ("scale"), so that one schedule serves all.

    Raises:
        ConfigError: a part's own groups do not hold every parameter once, or a kernel cannot be compiled.
    """
    parts = groups(stage, recipe)
    if not parts:
        return None
    for group in parts:
        group["scale"] = group.get("lr", recipe.lr) / recipe.lr
    how: dict[str, Any] = {}
    make: Any = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[recipe.optimizer]
    if recipe.moments == "16-bit":
        parts, how = adam16.split(parts, stage), {"compiled": recipe.moments_kernel == "compiled"}
        make = {"adamw": adam16.AdamW16, "adam": adam16.Adam16}[recipe.optimizer]
    named = {"betas": recipe.betas, "eps": recipe.eps, "weight_decay": recipe.weight_decay, "fused": True}
    return make(parts, lr=recipe.lr, **named, **how)


def state_tensors(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, torch.Tensor]:
    """Return the optimiser's state as flat tensors, "moment:parameter" -> tensor; `names` is by id of parameter."""
    found = {}
    for p, state in optimizer.state.items():
        for key, x in state.items():
            found[f"{key}:{names[id(p)]}"] = torch.as_tensor(x)
    return found


def load_state_tensors(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], names: dict[int, str]
) -> None:
    """Put back what `state_tensors` returned."""
    by_name: dict[str, dict[str, torch.Tensor]] = {}
    for flat, x in tensors.items():
        key, _, name = flat.partition(":")
        by_name.setdefault(name, {})[key] = x
    order = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
    packed = optimizer.state_dict()
    packed["state"] = {i: by_name[name] for i, name in enumerate(order) if name in by_name}
    optimizer.load_state_dict(packed)

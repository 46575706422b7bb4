"""What an engine wraps: one small module whose forward is the loss of one stage of a system."""

from __future__ import annotations

from typing import Any

from torch import nn

from zoo.interfaces import Batch, Losses
from zoo.rng import Rng


class Stage(nn.Module):
    """The trained half of one stage: `(batch, step, rng) -> Losses`.

    Only the stage's trained parts are submodules. The system itself, and with it the frozen parts, is held where
    `parameters()` does not find it, so that no engine shards, casts or updates a part that is not being trained.
    Calling `generator.loss` past the wrapped module would leave gradients unsynchronised between processes: in
    training nothing but the engine calls it.

    Args:
        generator: the system.
        part: name of the stage, a key of `generator.stages`.
    """

    generator: Any

    def __init__(self, generator: Any, part: str) -> None:
        super().__init__()
        self.part = part
        self.roles = trained_roles(generator, part)
        # Not through nn.Module's attribute hook, which would register it.
        self.__dict__["generator"] = generator
        for role in self.roles:
            module = generator.parts[role]
            if isinstance(module, nn.Module):
                self.add_module(key_of(role), module)
        for module in self._frozen():
            module.requires_grad_(False)

    def _frozen(self) -> list[nn.Module]:
        """Return the modules this stage reads and does not change."""
        roles = [role for role in self.generator.reads(self.part) if role not in self.roles]
        parts = [self.generator.parts[role] for role in roles]
        return [part for part in parts if isinstance(part, nn.Module)]

    def train(self, mode: bool = True) -> Stage:
        """Set the mode of the trained parts; frozen parts stay in evaluation."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        return self

    def forward(self, batch: Batch, step: int, rng: Rng) -> Losses:
        """Return the stage's losses on a batch that `generator.encode` has filled."""
        return self.generator.loss(self.part, batch, step=step, rng=rng)


def key_of(role: str) -> str:
    """Return the name of a role's submodule in its stage; a module's name has no dots."""
    return role.replace(".", "/")


def trained_roles(generator: Any, part: str) -> tuple[str, ...]:
    """Return the roles of a stage that are trained by gradient; one without a loss is moved by another's."""
    return tuple(role for role in generator.stages[part] if not hasattr(generator.parts[role], "fit"))


def fitted_roles(generator: Any, part: str) -> tuple[str, ...]:
    """Return the roles of a stage that are fitted in one go."""
    return tuple(role for role in generator.stages[part] if hasattr(generator.parts[role], "fit"))


def recipe_of(generator: Any, part: str) -> Any:
    """Return the stage's recipe: that of the part the stage is named after, else of its last trained part."""
    roles = trained_roles(generator, part)
    owner = part if part in roles else roles[-1]
    return generator.parts[owner].config.train

"""What every whole system has: parts by role, which of them are ready, and the stages that train them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.compiling import check_compiler
from zoo.errors import NotReady, PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.rng import Rng

_CPU = torch.device("cpu")


class System(nn.Module):
    """What every generator has: parts by role, which of them are ready, and the stages that train them."""

    home: torch.device | None = None
    """Where parts are built that are built when they are needed; None: none are."""

    SETTINGS: tuple[str, ...] = ()
    """Arguments of `generate` that say how is drawn, of those that families have in common."""

    card: str
    config: Any
    plugin: str
    version: str
    parts: Mapping[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self._ready: dict[str, bool] = {}

    def adopt(self) -> None:
        """Note what is ready at birth: objects that were given, and parts without parameters."""
        for role, part in self.parts.items():
            empty = not (isinstance(part, nn.Module) and any(True for _ in part.parameters()))
            self._ready[role] = getattr(part, "plugin", "") == "given" or empty

    def mark_ready(self, role: str) -> None:
        """Say that a part was loaded, imported, fitted or has taken a step."""
        self._ready[role] = True

    @property
    def device(self) -> torch.device:
        """Where its parameters are; those that are not there at all do not count beside others."""
        places = [p.device for p in self.parameters()]
        return next((place for place in places if place.type != "meta"), self.home or next(iter(places), _CPU))

    def compile_sampling(self) -> None:
        """Let every part that can compile its sampling step do so when it first draws.

        Raises:
            PartMismatch, NotInstalled: no part can; there is no C++ compiler.
        """
        able = [part for part in self.parts.values() if hasattr(part, "compile_sampling")]
        if not able:
            raise PartMismatch(f"no part of '{self.card}' can compile its sampling")
        check_compiler(self.device.type)
        for part in able:
            part.compile_sampling()

    @property
    def ready(self) -> dict[str, bool]:
        """Role -> whether the part has weights worth using; a fitted part answers for itself."""
        return {role: self._ready[role] and getattr(part, "ready", True) for role, part in self.parts.items()}

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Ordered, from `--part` name to the roles it trains or fits."""
        stages: dict[str, tuple[str, ...]] = {}
        for role, part in self.parts.items():
            if "." not in role and hasattr(part, "loss"):
                fitted = [r for r in self.reads(role) if hasattr(self.parts[r], "fit")]
                stages[role] = (*fitted, role)
        return stages

    def reads(self, role: str) -> tuple[str, ...]:
        """Return the roles that the stage `role` uses and does not train by gradient."""
        return tuple(r for r in self.parts if r.startswith(f"{role}."))

    def encode(self, part: str, batch: Batch, *, rng: Rng | None = None) -> Batch:
        """Return the batch with what the stage's frozen parts compute filled in, without gradient."""
        return batch

    def loss(self, part: str, batch: Batch, *, step: int, rng: Rng) -> Losses:
        """Return the loss of the stage's trained part."""
        return self.parts[part].loss(batch, self.cond(part, batch), step=step, rng=rng)

    def tokens(self, part: str, batch: Batch, *, rng: Rng) -> Tensor:
        """Return [B], the tokens of each sample that the part's loss is a mean over; see `Trainable`."""
        return self.parts[part].tokens(batch, self.cond(part, batch), rng=rng)

    def cond(self, part: str, batch: Batch) -> Cond:
        """Return what the part reads of the batch, and nothing else."""
        return Cond()

    @property
    def asks(self) -> str:
        """What a prompt is: "caption", "label", or "nothing"."""
        return "nothing"

    @property
    def work(self) -> tuple[int, str]:
        """Units of work of one drawn candidate, and what they are called."""
        return 1, "picture"

    def used(self, ranked: bool = False) -> list[str]:
        """Return the roles that drawing pictures uses; with `ranked` also those that rank them."""
        return []

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Hold every part in evaluation mode."""
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

    def need(self, roles: Sequence[str]) -> None:
        """Raise NotReady when one of `roles` has no weights; the text says which and what to type."""
        missing = [role for role in roles if not self.ready[role]]
        if missing:
            raise NotReady(
                f"'{self.card}' has no weights for {', '.join(missing)}; import them, or train them with "
                f"`python scripts/train.py --model {self.card}`, or pass allow_untrained=True"
            )


class Solo(System):
    """A system of one part: what training a part's card trains."""

    def __init__(self, interface: str, part: nn.Module, config: Any) -> None:
        super().__init__()
        self.interface, self.part, self.config = interface, part, config

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """The one stage; a part that is only fitted has one too."""
        return super().stages or ({self.interface: (self.interface,)} if hasattr(self.part, "fit") else {})

    def generate(self, *_: Any, **__: Any) -> Tensor:
        """Refuse: a part alone draws no pictures."""
        raise PartMismatch(f"'{self.card}' is a {self.interface}, not a whole system: it cannot generate")

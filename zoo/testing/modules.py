"""Checks of every built part: interface, identity, parameters, state."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo import interfaces
from zoo.nn.residual import residuals
from zoo.testing.kit import Case, need, reloaded

_PROTOCOLS = {
    "tokenizer": interfaces.Tokenizer,
    "text_encoder": interfaces.TextEncoder,
    "codebook": interfaces.Codebook,
    "latent": interfaces.Latent,
    "prior": interfaces.Prior,
    "denoiser": interfaces.Denoiser,
    "reranker": interfaces.Reranker,
    "generator": interfaces.Generator,
}


def has_its_interface(case: Case) -> None:
    """The part has every member of its interface."""
    protocol = _PROTOCOLS[case.interface]
    members = {n for n in (*vars(protocol), *protocol.__annotations__) if not n.startswith("_")}
    missing = sorted(name for name in members if not hasattr(case.part, name))
    need(not missing, f"a {case.interface} needs {', '.join(missing)}")


def knows_itself(case: Case) -> None:
    """The built object knows its card, config, plugin and version."""
    for name in ("card", "config", "plugin", "version"):
        need(getattr(case.part, name, None) is not None, f"the built object has no `{name}`")
    need(case.part.config == case.config, "the built object's config is not the one it was built from")


def parameters_belong_to_one_module(case: Case) -> None:
    """No parameter is shared by two modules or two parts, nor in two residual branches."""
    modules = [(role, part) for role, part in case.system.parts.items() if isinstance(part, nn.Module)]
    owners: dict[int, str] = {}
    for role, part in modules:
        for name, module in part.named_modules(prefix=role):
            for own, p in module.named_parameters(recurse=False):
                first = owners.setdefault(id(p), f"{name}.{own}")
                need(first == f"{name}.{own}", f"{first} and {name}.{own} are one parameter; pass it to a function")
    for _, part in modules:
        branches: dict[int, str] = {}
        for name, block in residuals(part):
            for p in block.branch.parameters():
                first = branches.setdefault(id(p), name)
                need(first == name, f"the residual branches {first} and {name} share a parameter")


def parameters_are_set_where_they_are_made(case: Case) -> None:
    """No module's parameter changes after its own constructor: built in pieces over many devices, it would not.

    (DeepSpeed's `zero.Init` cuts up parameters when their module's constructor ends; what its parent sets is lost.)
    """
    case.make(0)  # imports every class
    with _noted() as made:
        system = case.make(0)
    for part in system.parts.values():
        for name, module in part.named_modules() if isinstance(part, nn.Module) else ():
            for own, p in module.named_parameters(recurse=False):
                before = made.get(module, {}).get(own)  # a copy has run no constructor
                what = f"{name}.{own}".strip(".")
                same = before is not None and torch.equal(before, p.detach())
                need(same, f"parameter '{what}' is made or set after the constructor of its module")


@contextmanager
def _noted() -> Iterator[dict[nn.Module, dict[str, Tensor]]]:
    """Note the own parameters of every module that is made in the block, as its constructor leaves them."""
    made: dict[nn.Module, dict[str, Tensor]] = {}
    before = {cls: cls.__init__ for cls in _below(nn.Module) if "__init__" in vars(cls)}

    def noting(init: Any) -> Any:
        @functools.wraps(init)
        def noted(self: Any, *arguments: Any, **named: Any) -> None:
            init(self, *arguments, **named)
            if type(self).__init__ is noted:  # else one of a class below it goes on
                made[self] = {name: p.detach().clone() for name, p in self.named_parameters(recurse=False)}

        return noted

    try:
        for cls, init in before.items():
            cls.__init__ = noting(init)
        yield made
    finally:
        for cls, init in before.items():
            cls.__init__ = init


def _below(cls: type) -> set[Any]:
    return {cls}.union(*map(_below, cls.__subclasses__()))


def state_survives_saving(case: Case) -> None:
    """Loading the part's safetensors into a fresh part makes it the same: its whole state is in its state_dict."""
    part = case.part
    if not isinstance(part, nn.Module):
        return
    holder = case.fresh(seed=1, fit=False)
    for role, child in case.system.parts.items():
        if "." in role and isinstance(child, nn.Module):
            reloaded(child, holder.parts[role])
    other = reloaded(part, case.of(holder))
    state, copied = part.state_dict(), other.state_dict()
    for name, x in state.items():
        need(isinstance(x, Tensor), f"state_dict()['{name}'] is no tensor")
        need(torch.equal(x, copied[name]), f"'{name}' is not the same after saving and loading")
    with torch.inference_mode():
        for before, after in zip(flat(probe(case, part)), flat(probe(case, other)), strict=True):
            need(torch.equal(before, after), "the part acts differently after saving and loading: some state is lost")


def runs_in_double(case: Case) -> None:
    """The part works in float64."""
    part = case.of(case.fresh().double())
    with torch.inference_mode():
        for x in flat(probe(case, part)):
            need(not x.is_floating_point() or x.isfinite().all(), "in float64 the result is not finite")


def probe(case: Case, part: Any) -> Any:
    """Return what the part answers to one typical call."""
    floats = [p.dtype for p in part.parameters()] if isinstance(part, nn.Module) else []
    dtype = next(iter(floats), torch.float32)
    images = case.images().to(dtype)
    match case.interface:
        case "tokenizer":
            return part.encode(["a red circle", "blue"])
        case "text_encoder":
            ids = torch.ones(2, 6, dtype=torch.int64)
            return part.encode(ids, ids > 0)
        case "codebook":
            return part.decode(part.encode(images), case.grids(part))
        case "latent":
            return part.decode(part.encode(images))
        case "prior":
            return part.logits(case.codes(part), case.cond())
        case "denoiser":
            return part.predict(case.z().to(dtype), torch.linspace(-5, 5, 4, dtype=dtype), case.cond()).mean
        case "reranker":
            return part.score(images, ["a red circle"] * len(images))
    raise AssertionError(f"no such interface: {case.interface}")


def flat(x: Any) -> Iterable[Tensor]:
    """Return the tensors of an answer."""
    return [x] if isinstance(x, Tensor) else [item for part in x for item in flat(part)]


CHECKS = [
    has_its_interface,
    knows_itself,
    parameters_belong_to_one_module,
    parameters_are_set_where_they_are_made,
    state_survives_saving,
    runs_in_double,
]
SYSTEM_CHECKS = [
    has_its_interface,
    knows_itself,
    parameters_belong_to_one_module,
    parameters_are_set_where_they_are_made,
]

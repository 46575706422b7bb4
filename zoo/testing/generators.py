"""Checks of whole systems: pictures by prompt, seed and candidate; stages that train."""

from __future__ import annotations

import itertools
from typing import Any

import torch

from zoo.errors import CannotSample, ConfigError, NotReady
from zoo.interfaces import INTERFACES
from zoo.testing.kit import ROWS, Case, Pictures, close, global_random_state_kept, need


def prompts_of(case: Case, system: Any, n: int = 2) -> list[Any]:
    """Return prompts of the kind the system reads."""
    reads = {getattr(getattr(part, "config", None), "reads", None) for part in system.parts.values()}
    if reads & {"ids", "text"}:
        return list(itertools.islice(Pictures(case.image_size).texts(), n))
    return [i % case.classes for i in range(n)] if "label" in reads else [None] * n


def parts_have_roles(case: Case) -> None:
    """`parts` goes by role, `stages` name roles that exist, and every part is one of the interfaces' objects."""
    system = case.system
    need(system.parts, "the system has no parts")
    roles = set(system.parts)
    for name, trained in system.stages.items():
        need(set(trained) <= roles, f"stage '{name}' trains {sorted(set(trained) - roles)}, which are no parts")
    need(set(system.ready) == roles, "`ready` does not name every part")
    for role, node in _children(case.config).items():
        need(node.interface in INTERFACES, f"'{role}' is a '{node.interface}', which is no interface")


def _children(config: Any) -> dict[str, Any]:
    from zoo.config import fields
    from zoo.parts import Ref

    found = {name: getattr(config, name) for name in fields(type(config))}
    return {name: item for name, item in found.items() if isinstance(item, Ref)}


def untrained_parts_are_refused(case: Case) -> None:
    """generate on a model without weights raises NotReady, and says which part."""
    system = case.make(0)
    try:
        system.generate(prompts_of(case, system))
    except NotReady as error:
        missing = [role for role, ready in system.ready.items() if not ready]
        need(any(role in str(error) for role in missing), f"NotReady names no part: {error}")
        return
    raise AssertionError("generate runs with parts that have no weights")


def cannot_draw(system: Any, prompts: list[Any]) -> bool:
    """Return True of a system whose prior models masked codes only, and says so."""
    try:
        system.generate(prompts[:1])
    except CannotSample:
        return True
    return False


def pictures_follow_the_seed(case: Case) -> None:
    """generate returns [prompts*n,3,H,W] in [0, 1]; the seed decides all; nothing global is touched."""
    system, size = case.system, case.image_size
    prompts = prompts_of(case, system)
    if cannot_draw(system, prompts):
        return
    with global_random_state_kept("generate"):
        images = system.generate(prompts, images_per_prompt=2, seed=3)
    need(images.shape == (4, 3, size, size), f"2 prompts, 2 pictures each, have shape {list(images.shape)}")
    need(images.min() >= 0 and images.max() <= 1, "pixels leave [0, 1]")
    need(torch.equal(images, system.generate(prompts, images_per_prompt=2, seed=3)), "one seed gives two results")
    other = system.generate(prompts, images_per_prompt=2, seed=4)
    need(not torch.equal(images, other), "two seeds give one result")


def candidates_stand_alone(case: Case) -> None:
    """Candidate j of prompt i depends on (seed, i, j): not on the chunk, the count, or later prompts."""
    system = case.fresh().double()
    prompts = prompts_of(case, system, 3)
    if cannot_draw(system, prompts):
        return
    images = system.generate(prompts, images_per_prompt=3, seed=1)
    more = system.generate(prompts, images_per_prompt=4, seed=1).unflatten(0, (3, 4))[:, :3].flatten(0, 1)
    close(images, more, "a candidate depends on how many are drawn")
    close(images[:3], system.generate(prompts[:1], images_per_prompt=3, seed=1), "a prompt depends on later prompts")
    close(images, system.generate(prompts, images_per_prompt=3, seed=1, chunk=2), "the chunk changes a candidate")


def reranked_are_the_best(case: Case) -> None:
    """rerank=k returns the best of the k candidates by the reranker's score, best first; too few are refused."""
    system = case.fresh().double()
    prompts = prompts_of(case, system)
    if getattr(system, "reranker", None) is None or not isinstance(prompts[0], str):
        return
    every = system.generate(prompts, images_per_prompt=4, seed=2).unflatten(0, (2, 4))
    best = system.generate(prompts, images_per_prompt=2, rerank=4, seed=2).unflatten(0, (2, 2))
    for i, prompt in enumerate(prompts):
        scores = system.reranker.score(every[i], [prompt] * 4)
        order = scores.sort(descending=True).values[:2]
        close(system.reranker.score(best[i], [prompt] * 2), order, "rerank does not return the best, best first")
    try:
        system.generate(prompts, images_per_prompt=4, rerank=2)
    except ConfigError:
        return
    raise AssertionError("fewer candidates than pictures are not refused with a ConfigError")


def stages_train(case: Case) -> None:
    """Every stage encodes a batch without gradient, keeps what is there, and has a finite loss with a gradient."""
    system = case.fresh().train()
    read = Pictures(case.image_size).read(range(ROWS))
    for stage, trained in system.stages.items():
        with global_random_state_kept(f"stage '{stage}'"):
            batch = system.encode(stage, read, rng=case.rng())
            need(batch.images is read.images and batch.texts == read.texts, f"encode('{stage}') changes the batch")
            again = system.encode(stage, batch)
            same = all(again.filled()[name] is x for name, x in batch.filled().items())
            need(same, f"encode('{stage}') computes again what the batch has")
            loss = system.loss(stage, batch, step=0, rng=case.rng())["loss"]
        need(torch.isfinite(loss), f"the loss of stage '{stage}' is {float(loss.detach())}")
        system.zero_grad()
        loss.backward()
        moved = {role for role, part in system.parts.items() if _has_gradient(part)}
        learning = {role for role in trained if not hasattr(system.parts[role], "fit") and _learns(system.parts[role])}
        need(learning <= moved, f"stage '{stage}' says it trains {sorted(learning - moved)}, and gives no gradient")
        need(moved <= set(trained), f"stage '{stage}' moves {sorted(moved)} and says it trains {list(trained)}")


def _learns(part: Any) -> bool:
    return any(p.requires_grad for p in getattr(part, "parameters", list)())


def _has_gradient(part: Any) -> bool:
    grads = [p.grad for p in getattr(part, "parameters", list)()]
    return any(g is not None and bool(g.abs().max() > 0) for g in grads)


CHECKS = [
    parts_have_roles,
    untrained_parts_are_refused,
    pictures_follow_the_seed,
    candidates_stand_alone,
    reranked_are_the_best,
    stages_train,
]

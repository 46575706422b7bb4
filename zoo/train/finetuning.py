"""What training from existing weights changed: loss, and obedience to captions, before and after.

Measured on pictures of the new data that are not trained on, where there are any, by one process, on the parts as
files have them; so it does not matter which engine trains, and how. Written to `<run>/finetuning.json`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import registry
from zoo.errors import ZooError
from zoo.evaluate.figures import codebook_figures, loss_figures
from zoo.evaluate.judge import judge_of
from zoo.evaluate.pictures import Ask, look
from zoo.files import atomic_text
from zoo.interfaces import Dataset
from zoo.nn import across
from zoo.resolution import Node
from zoo.runs import load_part
from zoo.train.interrupt import Interrupted
from zoo.train.one import Setting, recipe_for, size_of
from zoo.train.room import free_here
from zoo.train.stage import trained_roles
from zoo.weights import sha256

log = logging.getLogger("zoo.train")

FILE = "finetuning.json"
PICTURES = 256
"""That the losses are means over."""
CAPTIONS = 64
"""That pictures are drawn for, a single sample each."""
DRAWN = 8
"""Pictures drawn at a time: the keys and values that a prior keeps of each stay small beside its weights."""


def before(setting: Setting, node: Node, part: str) -> None:
    """Measure a stage with the weights it starts from; nothing where it starts from none, or goes on."""
    start, roles = setting.initial, trained_roles(setting.generator, part)
    if start is not None and set(roles) & set(start.files):
        files = {role: start.files[role] for role in roles}
        _note(setting, node, part, "before", files, {role: start.record["parts"][role] for role in roles})


def after(setting: Setting, node: Node, part: str) -> None:
    """Measure a stage that is done; nothing where there is no measure from before, or these weights' is known."""
    known = _read(setting.folder.path)["parts"].get(part, {})
    roles = trained_roles(setting.generator, part)
    if "before" in known and all(map(setting.folder.finished, roles)):
        files = {role: setting.folder.part_path(role) for role in roles}
        prints = {role: sha256(file) for role, file in files.items()}
        if known.get("after", {}).get("weights") != prints:
            _note(setting, node, part, "after", files, prints)


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"parts": {}}


def _note(
    setting: Setting, node: Node, part: str, when: str, files: dict[str, Path], prints: dict[str, str]
) -> None:  # fmt: skip
    """Measure, write and say; figures of other weights go, whether there are new ones or not."""
    parts = _read(setting.folder.path)["parts"]
    known = parts.pop(part, {})
    now = {"before": known["before"]} if when == "after" else {}
    figures = _tried(setting, node, part, when, files)
    if figures is not None:
        now[when] = {"weights": prints, **figures}
    elif now == known:
        return
    assert setting.initial is not None
    said = {"init": setting.initial.record["path"], "data": setting.data, "seed": setting.seed}
    parts |= {part: now} if now else {}
    atomic_text(setting.folder.path / FILE, json.dumps(said | {"parts": parts}, indent=1) + "\n")
    if figures is None:
        return
    begun = now["before"]
    text = ", ".join(
        _text(name, x, begun.get(name) if when == "after" else None)
        for name, x in figures.items()
        if isinstance(x, float)
    )
    asked = f" on {figures['captions']} captions" if "captions" in figures else ""
    what = part, when, figures["pictures"], figures["split"], text + asked
    log.info("%s: %s fine-tuning, on %d %s pictures: %s", *what)


def _tried(setting: Setting, node: Node, part: str, when: str, files: dict[str, Path]) -> dict[str, Any] | None:
    """Return the figures, None where they cannot be had: no measure is worth a run, whatever became of it."""
    try:
        return _measured(setting, node, part, files)
    except Interrupted:
        raise
    except Exception as reason:  # memory above all, which errors of many classes say is short
        kind = "" if isinstance(reason, ZooError) else f"{type(reason).__name__}: "
        log.warning("%s: not measured %s fine-tuning: %s%s", part, when, kind, " ".join(str(reason).split()))
        log.debug("where", exc_info=True)
    finally:
        free_here(setting.engine.device)  # the system is gone with the frames that held it
    return None


def _text(name: str, now: float, before: float | None) -> str:
    form = "{:.1%}" if name == "caption_accuracy" else "{:.4f}"
    was = "" if before is None else f" (was {form.format(before)})"
    return f"{name.replace('_', ' ')} {form.format(now)}{was}"


def _measured(setting: Setting, node: Node, part: str, files: dict[str, Path]) -> dict[str, Any] | None:
    """Return the figures of a stage with these weights; None, and why in the log, where there is no room."""
    outline, device = setting.generator, setting.engine.device
    tops = {*outline.stages[part], *outline.reads(part)}
    used = {role for role in outline.parts if any(f"{role}.".startswith(f"{top}.") for top in tops)}
    modules = [outline.parts[role] for role in used if isinstance(outline.parts[role], nn.Module)]
    need = sum(x.nbytes for module in modules for x in (*module.parameters(), *module.buffers()))
    free = free_here(device)
    if 2 * need > free:  # what is computed needs room too, and is some pictures at a time
        log.info("%s: not measured, %.3g GiB free is too little for a second copy", part, free / 2**30)
        return None
    system = registry.build_system(node, setting.config, seed=setting.seed, used=used)
    setting.folder.load_parts(system, {r for r in used - files.keys() if setting.folder.finished(r)})
    for role, path in files.items():
        load_part(path, system, role)
    for role in used:
        if isinstance(system.parts[role], nn.Module):
            system.parts[role].to(device)
    recipe = recipe_for(outline, part, setting.options)
    chunk = max(1, recipe.batch // recipe.accumulate // setting.engine.world.size)
    data, split = _pictures(setting, recipe.transform)
    with _alone(setting.engine.world.size):
        figures = _figures(_There(data, device), setting, system.eval(), part, min(chunk, 128))
    return {"split": split, "pictures": min(PICTURES, len(data)), **figures}


def _figures(data: Any, setting: Setting, system: Any, part: str, chunk: int) -> dict[str, Any]:
    figures: dict[str, Any] = dict(loss_figures(system, part, data, PICTURES, setting.seed, chunk))
    judge = judge_of(setting.data)
    if part == "codebook":
        figures["psnr"] = codebook_figures(system.parts[part], data, PICTURES)["psnr"]
    if part == "prior" and judge is not None and getattr(system, "asks", "") == "caption":
        ask = Ask(captions=CAPTIONS, counts=(1,), radii=(), features=(), judge=judge, reference=0, seed=setting.seed,
                  chunk=min(DRAWN, CAPTIONS))  # fmt: skip
        seen = look(system, data, ask)
        figures |= {"captions": seen.generated, "caption_accuracy": seen.obeyed["best_of_1", 0.0]}
    return figures


def _pictures(setting: Setting, transform: str) -> tuple[Dataset, str]:
    """Return pictures that are not trained on, where the data has any, and the name of their split."""
    size = size_of(setting.config, setting.options.model)
    for split in ("validation", "train"):
        try:
            data = registry.open_dataset(setting.data, split=split, size=size, transform=transform)
        except ZooError:
            if split == "train":
                raise
            continue
        if len(data):
            break
    return data, split


class _There:
    """A dataset whose batches are read onto a device."""

    def __init__(self, data: Dataset, device: torch.device) -> None:
        self.data, self.device = data, device

    def __len__(self) -> int:
        return len(self.data)

    def read(self, rows: Any, rng: Any = None) -> Any:
        return self.data.read(rows, rng).to(self.device)


@contextmanager
def _alone(processes: int) -> Iterator[None]:
    """Keep sums and gathers over the batch to this process, which works alone in the block."""
    across.set_group(None, active=False)
    try:
        yield
    finally:
        across.set_group(None, active=processes > 1)

"""Several runs, each sampled in several ways, on the same captions and seeds: what a curve over guidance is made of.

[1] compares text encoders and U-Nets of several sizes by such curves, alignment against distance, in its figure 4.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding.
    arXiv:2205.11487
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor
from torch.nn import functional as F

from zoo.data.drawing import SIDE
from zoo.errors import BadData, ConfigError, PartMismatch
from zoo.evaluate.cells import Cell, Kept, Sweep, Way, identity
from zoo.evaluate.features import check_names, features_of
from zoo.evaluate.judge import judge_of
from zoo.evaluate.pictures import Ask, Real, look, look_at_real, prompts_of
from zoo.interfaces import Dataset
from zoo.nn.resize import smaller
from zoo.registry import load_system, open_dataset

Bar = Callable[[int, str, str], Any]
"""Makes a progress bar of (total, what, unit)."""


def draw_cells(
    sweep: Sweep, kept: Kept, *, bar: Bar, again: bool = False, save: Callable[[], None] = lambda: None
) -> None:
    """Draw and judge every cell that is not kept, and keep it.

    All runs are loaded and asked whether they can do what is wanted before the first picture is drawn.

    Args:
        sweep: what is compared.
        kept: where cells are.
        bar: shows the pictures of a cell.
        again: draw cells that are kept, too.
        save: called after every cell.

    Raises:
        UnknownName, NotInstalled: there is no such feature or stage.
        ConfigError: a setting that a run does not have, or out of range.
        PartMismatch, NotReady: a run is no whole system, or not trained.
        BadData: the data has no such split, or nothing to ask for.
    """
    check_names([sweep.feature])
    if sweep.feature == "reranker" and len(sweep.runs) > 1:
        raise ConfigError("--distance reranker: distances by the rerankers of several runs cannot be compared")
    todo = [place for place in sweep.places if again or kept.get(identity(sweep, *place)) is None]
    load = _Loaded()
    for run in dict.fromkeys(run for run, *_ in todo):
        check(load(run), run, sweep)
    view = _View(sweep)
    for number, (run, split, way) in enumerate(todo, 1):
        what = f"{number} of {len(todo)}, {Path(run).name}, {way.name}, guidance {way.strength}, {split}"
        kept.add({"of": identity(sweep, run, split, way), **view(load(run), split, way, bar, what)})
        save()


class _Loaded:
    """The run that was last asked for: of several, one is in memory at a time."""

    def __init__(self) -> None:
        self.run, self.system = "", None

    def __call__(self, run: str) -> Any:
        if run != self.run:
            self.system = None
            self.run, self.system = run, load_system(run)
        return self.system


def check(system: Any, run: str, sweep: Sweep) -> None:
    """Refuse what a run cannot do; see `draw_cells`."""
    if not hasattr(system, "best_of"):
        raise PartMismatch(f"'{run}' trained a {system.card} alone; a whole system is needed to sweep")
    for option, asked in (("--how", any(sweep.changes)), ("--stage", sweep.stage is not None)):
        if asked and "sampling" not in system.SETTINGS:
            raise PartMismatch(f"{option}: '{run}' ({system.card}) has no denoisers; leave {option} out")
    system.need(system.used() if sweep.stage is None else system.used(roles=system.until(sweep.stage)))
    for way in sweep.ways:
        _check_guidance(system, run, way, sweep.stage)
    if not features_of(system, [sweep.feature]):
        raise PartMismatch(f"--distance {sweep.feature}: '{run}' has no {sweep.feature} that tells what it sees")
    for split in sweep.splits:
        if prompts_of(system, _open(sweep, split, system).read(range(1))) is None:
            raise BadData(f"'{run}' is asked by {system.asks}, and '{sweep.data}' has none")


def _check_guidance(system: Any, run: str, way: Way, stage: str | None) -> None:
    try:
        found = guidances(system, way, stage)
    except ConfigError as cause:
        raise ConfigError(f"{run}: {cause}") from None  # which of several
    for role, guidance in found.items():
        if guidance != 1 and getattr(system.parts[role].config, "cond_drop", 0) == 0:
            raise ConfigError(
                f"guidance: {guidance:g} needs cond_drop > 0 in training; {role} of '{run}' had 0: take 1"
            )


def guidances(system: Any, way: Way, stage: str | None = None) -> dict[str, float]:
    """Return the guidance of each part that draws, by role; those of a cascade up to `stage`.

    Raises:
        ConfigError: a change names no setting, or is out of range.
    """
    if "sampling" in system.SETTINGS:
        settings = system.sampling(way.guidance, way.changes)
        return {role: settings[role].guidance for role in system.until(stage)}
    return {"prior": system.config.sampling.guidance if way.guidance is None else way.guidance}


@attrs.frozen
class _View:
    """Draws and judges a cell; the real pictures of several are looked at once."""

    sweep: Sweep
    real: dict[tuple[str, int, int, str], Real] = attrs.field(factory=dict)
    """By split, sides, and what the system is asked by: where it is by caption they are judged."""

    def __call__(self, system: Any, split: str, way: Way, bar: Bar, what: str) -> Cell:
        feature, side = self.sweep.feature, picture_side(system, self.sweep.stage)
        source, ask = _open(self.sweep, split, system), _ask(self.sweep, system, way, side)
        place = split, system.config.image_size, side, system.asks
        if place not in self.real:
            self.real[place] = look_at_real(source, ask, system.device)
        count = min(ask.captions, len(source))
        with bar(count, what, "picture") as progress:
            seen = look(system, source, ask, partial(_advance, progress, count), self.real[place])
        ours, real = ("best_of_1", 0.0), ("real", 0.0)
        good = seen.verdicts.get(ours)
        return {
            "captions": count,
            "verdicts": None if good is None else "".join("01"[int(x)] for x in good),
            "distance": seen.distances.get(ours, {}).get(feature),
            "real": {"accuracy": seen.obeyed.get(real), "distance": seen.distances.get(real, {}).get(feature)},
            "reference": seen.reference,
            "other_rows": seen.apart,
            "about": ask.features[0].about,
            "guided": next(iter(guidances(system, way).values())),
            "side": side,
        }


def _advance(progress: Any, count: int, done: int, total: int) -> None:
    progress.update(done * count // total - progress.n)


def picture_side(system: Any, stage: str | None) -> int:
    """Return the side in pixels of the pictures that are drawn."""
    return system.config.image_size if stage is None else system.places[stage].image_size


def _ask(sweep: Sweep, system: Any, way: Way, side: int) -> Ask:
    how: dict[str, Any] = {} if way.guidance is None else {"guidance": way.guidance}
    how |= {"sampling": way.changes} if way.changes else {}
    how |= {} if sweep.stage is None else {"last": sweep.stage}
    return Ask(
        captions=sweep.captions,
        counts=(1,),
        radii=(),
        features=features_of(system, [sweep.feature]),
        judge=judge_of(sweep.data, system.asks),
        reference=max(sweep.pictures, sweep.captions),
        seed=sweep.seed,
        chunk=sweep.chunk,
        how=how,
        shown=partial(shown, side),
    )


def shown(side: int, images: Tensor) -> Tensor:
    """Return images [B,3,S,S] as they are looked at: brought to `side`, and enlarged to what the judge reads.

    Generated and real ones alike: so real pictures have lost as much as those of a first stage. Bicubic, as of true
    pictures of 16 px the judge then passes 86% of 400, of bilinear ones 66%.
    """
    images = smaller(images, side)
    if side >= SIDE:
        return images
    return F.interpolate(images, (SIDE, SIDE), mode="bicubic", align_corners=False).clamp(0, 1)


def _open(sweep: Sweep, split: str, system: Any) -> Dataset:
    return open_dataset(sweep.data, split=split, size=system.config.image_size)

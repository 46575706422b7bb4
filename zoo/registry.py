"""Names to objects: `build`, `load`, `info`, `list_models`, and what the trainer uses of them.

`build` is `resolve` (no torch) and then one construction per part. Torch is imported by what constructs.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import attrs

from zoo import plugins
from zoo.catalogue import Card, catalogue
from zoo.config import Overrides, plain
from zoo.errors import BadRun, NotInstalled, PartMismatch
from zoo.resolution import Node, is_run, resolve_tree
from zoo.specs import DatasetSpec, EngineSpec, ReducerSpec, locate

if TYPE_CHECKING:
    from zoo.interfaces import Dataset


def list_models() -> list[Card]:
    """Return the cards of this environment, ours and installed third parties', by name. Imports no plugin."""
    return [card for _, card in sorted(catalogue().cards.items())]


def resolve(name: str, overrides: Overrides = ()) -> Any:
    """Return the bound config of a card or run folder, without torch; see `zoo.resolution.resolve_tree`."""
    return resolve_tree(name, overrides)[1]


def build(
    name: str,
    *,
    device: Any = None,
    dtype: Any = None,
    weights: str | None = None,
    parts: Mapping[str, Any] | None = None,
    overrides: Overrides = (),
) -> Any:
    """Build a model by name: a Generator for a whole system, the part itself for a card of a part.

    Args:
        name: a card, an alias, or a run folder (whose weights are loaded).
        device: None means torch's default device if the parameters fit its free memory, else the meta device with a
            warning that says how many bytes it needs. An explicit device is obeyed, or refused before allocation.
        dtype: floating dtype of the parameters; None is torch's default.
        weights: tag of one of the card's weights, or the path of a safetensors file of this part.
        parts: objects to put in the place of parts, by role, such as {"codebook": my_module}.
        overrides: "prior.depth=2" strings or a mapping; "codebook=vqvae" puts another card in a part's place.

    Raises:
        UnknownName, NotInstalled, PluginFailed, WrongApi: the four kinds of miss.
        ConfigError, PartMismatch: an override is wrong, or parts do not fit together.
        DoesNotFit: an explicit device has too little free memory.
        BadWeights: a weight file is not what it should be.
    """
    from zoo.construct import load_card_weights

    built = _build_system(name, device=device, dtype=dtype, parts=parts, overrides=overrides)
    if weights is not None:
        load_card_weights(built, weights)
    return _unwrap(built)


def _build_system(
    name: str, *, device: Any, dtype: Any, parts: Any = None, overrides: Overrides = (), one_at_a_time: bool = False
) -> Any:
    from zoo.construct import construct, place
    from zoo.runs import RunFolder, load_sources

    node, config = resolve_tree(name, overrides, parts=parts)
    if is_run(name):
        RunFolder(name).check_lineage()
    if one_at_a_time:  # what it takes in all need not fit
        return _built_sparsely(node, config, device=device, dtype=dtype)
    chosen = place(node, config, device=device, dtype=dtype)
    built = construct(node, config, device=chosen, dtype=dtype)
    if chosen.type != "meta":
        load_sources(node, built)
    return built


def _built_sparsely(node: Any, config: Any, *, device: Any, dtype: Any) -> Any:
    """Return a cascade without its denoisers' weights, which `bring` reads when they are needed.

    Raises:
        PartMismatch: it has no stages that draw one after the other.
        DoesNotFit: the explicit device has too little memory for what stays and the largest stage.
    """
    from zoo.construct import construct, count, place
    from zoo.runs import load_sources

    outline = construct(node, config, device="meta", dtype=dtype)
    if not hasattr(outline, "bring"):
        raise PartMismatch(f"'{node.card}' draws in one stage: load it without one_at_a_time")
    of_stage = {top: {role for role in outline.parts if role.partition(".")[0] == top} for top in outline.places}
    kept = set(outline.parts).difference(*of_stage.values())
    largest = max(of_stage.values(), key=lambda roles: sum(count(outline.parts[role]) for role in roles))
    home = place(node, config, device=device, dtype=dtype, used=kept | largest)
    built = construct(node, config, device=home, dtype=dtype, used=kept)
    load_sources(node, built, kept)
    for role, part in node.walk():
        if part.source is not None:
            built.mark_ready(role)

    def bring(role: str) -> Any:
        # Seeded, so that a part without weights is the same one every time.
        one = construct(node, config, device=home, dtype=dtype, used=of_stage[role], seed=0)
        load_sources(node, one, of_stage[role])
        return one.parts[role].eval()

    built.bring, built.home = bring, home
    return built


def load(path: str, *, device: Any = None, dtype: Any = None, one_at_a_time: bool = False) -> Any:
    """Rebuild a saved run from its own folder, with no name: a Generator, or the part if the run trained a part alone.

    Parts that are not finished have fresh weights; `g.ready` says which, and `generate` refuses to use them.

    Args:
        path: the run folder.
        device, dtype: as for `build`.
        one_at_a_time: of a cascade, hold the weights of one denoiser at a time: each is read from the folder for every
            chunk of candidates, and forgotten after its stage.

    Raises:
        BadRun: there is no run at `path`, or a part was trained on others than the ones beside it.
        BadWeights: a weight file is truncated, foreign, or of another model.
    """
    return _unwrap(load_system(path, device=device, dtype=dtype, one_at_a_time=one_at_a_time))


def load_system(path: str, *, device: Any = None, dtype: Any = None, one_at_a_time: bool = False) -> Any:
    """Rebuild a saved run as a system, also when it trained one part alone (`zoo.generators.Solo`); see `load`."""
    from zoo.runs import RunFolder

    folder = RunFolder(path).path.resolve()  # says what is wrong with the path; a folder may have a card's name
    return _build_system(str(folder), device=device, dtype=dtype, one_at_a_time=one_at_a_time)


def _unwrap(built: Any) -> Any:
    from zoo.generators import Solo

    return built.part if isinstance(built, Solo) else built


def info(name: str, overrides: Overrides = ()) -> dict[str, Any]:
    """Return the facts of a model: at least name, plugin, kind, params, parts with the params of each, and layouts.

    Counts are of what would be built, on the meta device: no memory is taken. `notes` are what the model's config says
    of itself by `notes() -> {what: sentence}`, where it does: figures that differ from its paper's, say.
    """
    from zoo.construct import construct, count
    from zoo.layouts import layouts_of

    node, config = resolve_tree(name, overrides)
    card = catalogue().get(name) if name in catalogue() else None
    built = construct(node, config, device="meta")
    counts = {role: count(part) for role, part in built.parts.items()}
    facts = attrs.asdict(card) if card else {"name": name, "plugin": node.plugin, "kind": node.interface}
    notes = getattr(config, "notes", None)
    return {
        **facts,
        "params": sum(counts.values()),
        "notes": notes() if notes is not None else {},
        "parts": {
            role: {"card": part.card, "plugin": part.plugin, "params": counts[role]}
            for role, part in built.parts.items()
        },
        "layouts": layouts_of(node),
        "config": plain(config),
    }


def open_dataset(uri: str, *, split: str = "train", size: int, transform: str = "fit") -> Dataset:
    """Open "name" or "name:path" as a dataset of square pictures.

    Raises:
        UnknownName: no dataset has this name.
        NotInstalled: it needs an extra; says what to type.
        BadData: it cannot be read.
    """
    name, _, path = uri.partition(":")
    spec: DatasetSpec = plugins.installed().find(DatasetSpec, name, "dataset")
    opener = locate(spec.open)
    try:
        return opener(path, split=split, size=size, transform=transform)
    except ModuleNotFoundError as cause:
        if spec.needs is None:
            raise
        raise NotInstalled(f"dataset '{name}' needs its extra: pip install 'image-zoo[{spec.needs}]'") from cause


def engine(name: str) -> EngineSpec:
    """Return the spec of a training engine."""
    return plugins.installed().find(EngineSpec, name, "engine")


def reducer(name: str) -> ReducerSpec:
    """Return the spec of a gradient reducer, asked for as "name" or "name:settings"."""
    return plugins.installed().find(ReducerSpec, name.partition(":")[0], "reducer")


def reducer_config(name: str) -> Any:
    """Return the config of a gradient reducer, "name" or "name:settings"; it has `cost`. Imports no torch.

    Raises:
        UnknownName: no reducer has this name.
        ConfigError: a setting is unknown, of the wrong type or out of range.
    """
    return locate(reducer(name).config)(name.partition(":")[2])


def build_system(
    node: Node,
    config: Any,
    *,
    seed: int,
    trained: Sequence[str] = (),
    building: AbstractContextManager[Any] | None = None,
    device: Any = None,
    used: Collection[str] | None = None,
) -> Any:
    """Construct a system for training: the trained roles inside `building`, the rest outside; no memory rule.

    Args:
        node, config: what `resolve_tree` returned.
        seed: decides every part's initial weights, each by its own role.
        trained: roles built inside `building`.
        building: the engine's context.
        device: where the parts go.
        used: roles that will be used; the others are built on the meta device. None: all.
    """
    from zoo.construct import construct

    context = building or nullcontext()
    return construct(node, config, device=device, seed=seed, trained=trained, building=context, used=used)


def run_config(path: str) -> Any:
    """Return the bound config of a run folder.

    Raises:
        BadRun: there is no run there.
    """
    if not is_run(path):
        raise BadRun(f"'{path}' is not a run folder: it has no run.toml")
    return resolve(path)

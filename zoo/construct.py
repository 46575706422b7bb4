"""Building objects from a resolved tree: one construction per part, children first."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo import plugins
from zoo.catalogue import catalogue
from zoo.errors import BadWeights, DoesNotFit, PluginFailed, UnknownName
from zoo.parts import Ref
from zoo.resolution import Node
from zoo.specs import locate


def construct(
    node: Node,
    config: Any,
    *,
    device: Any = None,
    dtype: Any = None,
    seed: int | None = None,
    trained: Sequence[str] = (),
    building: AbstractContextManager[Any] | None = None,
    used: Collection[str] | None = None,
) -> Any:
    """Return the generator of a resolved tree; a lone part comes as a system of that one role (`Solo`).

    Roles that are not in `used` are built on the meta device; None: all are used.

    Raises:
        Whatever a model's own constructor raises, with a note that says which part it was.
    """
    from zoo.generators import Solo

    def make(current: Node, bound: Any, role: str) -> Any:
        if current.given is not None:
            return current.given
        children = {
            name: make(child, getattr(bound, name).config, f"{role}.{name}".strip("."))
            for name, child in current.children.items()
        }
        context = building if building is not None and role in trained else nullcontext()
        place = device or torch.get_default_device() if used is None or role in used else "meta"
        with context, torch.device(place), _dtype(dtype), _seeded(seed, role):
            return _make_one(current, bound, children, role)

    if node.interface == "generator":
        built = make(node, config, "")
        roots = {name: getattr(built, name) for name in node.children}
    else:
        part = make(node, config, node.interface)
        built = Solo(node.interface, part, config)
        _label(built, node, config)
        roots = {node.interface: part}
    built.parts = dict(_roles(node, roots))
    built.adopt()
    for role, inner in node.walk("" if node.interface == "generator" else node.interface):
        if inner.given is not None:
            built.mark_ready(role)
    return built


def _make_one(node: Node, config: Any, children: dict[str, Any], role: str) -> Any:
    assert node.spec is not None
    try:
        builder = locate(node.spec.build)
    except (ImportError, AttributeError) as cause:
        origin = plugins.installed().origins[node.plugin]
        raise PluginFailed(f"plugin {origin}: '{node.spec.build}' cannot be imported: {cause}") from cause
    try:
        built = builder(config, **children)
    except Exception as error:
        error.add_note(f"while building {role or node.card} (card '{node.card}', plugin '{node.plugin}')")
        raise
    _label(built, node, config)
    return built


def _label(built: Any, node: Node, config: Any) -> None:
    """Let a built object know where it comes from."""
    origin = plugins.installed().origins[node.plugin]
    built.card, built.config, built.plugin, built.version = node.card, config, node.plugin, origin.version


def _roles(node: Node, roots: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield (role, part) of a built tree, parts before what holds them; nested roles are dotted."""
    tops = node.children if node.interface == "generator" else {node.interface: node}
    for name, child in tops.items():
        for role, inner in child.walk(name):
            part = roots[name]
            for step in role.split(".")[1:]:
                part = getattr(part, step)
            if inner.given is not None and not hasattr(part, "card"):
                part.card, part.plugin = inner.card, "given"
            yield role, part


@contextmanager
def _dtype(dtype: torch.dtype | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _seeded(seed: int | None, role: str) -> Iterator[None]:
    """Give a part its own initial weights: another part in the system changes nothing for this one."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(f"{seed}:{role}".encode()))
        yield


def count(part: Any) -> int:
    """Return the number of parameters of a part itself; parts it holds count for themselves."""
    return sum(p.numel() for p in part.parameters()) if isinstance(part, nn.Module) else 0


def place(
    node: Node, config: Any, *, device: Any, dtype: Any, used: Collection[str] | None = None
) -> torch.device:  # fmt: skip
    """Return the device to build on, by the rule of `zoo.build`; of the roles in `used` alone where they are given.

    Raises:
        DoesNotFit: an explicit device has too little free memory; nothing has been allocated.
    """
    wanted = torch.device(device) if device is not None else torch.get_default_device()
    if wanted.type == "meta":
        return wanted
    sample = construct(node, config, device="meta", dtype=dtype)
    parts = [part for role, part in sample.parts.items() if used is None or role in used]
    modules = [part for part in parts if isinstance(part, nn.Module)]
    need = sum(t.nbytes for m in modules for t in (*m.parameters(), *m.buffers()) if t.is_meta)
    free = free_memory(wanted)
    if need <= free:
        return wanted
    numbers = f"'{node.card}' needs {need:,} bytes of parameters and {wanted} has {free:,} free"
    if device is not None:
        raise DoesNotFit(f"{numbers}; use device='meta', a smaller variant, or dtype=torch.bfloat16")
    warnings.warn(f"{numbers}: built on the meta device; train it sharded with --zero 3", stacklevel=3)
    return torch.device("meta")


def free_memory(device: torch.device) -> int:
    """Return free bytes of a device; for a CPU what the system counts as available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if device.type == "cpu" and meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    return 1 << 62  # no way to know: let the allocation itself decide


def load_card_weights(built: Any, weights: str) -> None:
    """Load a part's published or local weights, sha256 verified.

    Raises:
        UnknownName: the card has no weights of this tag and there is no such file.
        BadWeights: the file is not what it should be.
    """
    from zoo.fetching import fetch
    from zoo.weights import load_into, load_tensors

    roles = [role for role in built.parts if "." not in role]
    if len(roles) != 1:
        raise BadWeights("weights are of one part; build the part, or load a run folder")
    part = built.parts[roles[0]]
    path = Path(weights)
    if not path.is_file():
        card = catalogue().get(built.card)
        known = {item.tag: item for item in card.weights}
        if weights not in known:
            raise UnknownName(f"weights of '{card.name}'", weights, known, "give a tag or a safetensors file")
        item = known[weights]
        path = fetch(item.uri, sha256=item.sha256, size=item.bytes, hook=_ask_plugins)
    tensors, _ = load_tensors(path)
    load_into(part, tensors, path)
    built.mark_ready(roles[0])


def _ask_plugins(uri: str, dest: Path) -> Path | None:
    """Ask each plugin for a weight file whose scheme the core does not read."""
    for _, path in plugins.installed().call("zoo_fetch", uri=uri, dest=dest):
        if path is not None:
            return Path(path)
    return None


__all__ = ["Ref", "construct", "count", "free_memory", "load_card_weights", "place"]

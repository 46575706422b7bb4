"""From a name and overrides to one bound config, without torch.

First parts are replaced, then fields are set, then the fields that other parts decide are bound. The result is the
same for `zoo.build`, `zoo info`, the trainer and `zoo.load`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import attrs

from zoo import plugins
from zoo.catalogue import Card, catalogue
from zoo.config import Overrides, fields, no_such_field, parse_overrides, plain, structure, value
from zoo.errors import ConfigError, PartMismatch, PluginFailed, UnknownName
from zoo.parts import Facts, Place, Ref
from zoo.specs import ModelSpec, locate

OFFERS: dict[str, dict[str, str]] = {
    "tokenizer": {"text_vocab": "vocab_size", "text_length": "length"},
    "text_encoder": {"text_width": "width"},
    "codebook": {"vocab_size": "vocab_size", "grids": "grids"},
    "latent": {"channels": "channels", "size": "size", "bounded": "bounded"},
}
"""Interface -> {field of the parts beside it: the fact that fills it}; of these interfaces a later one may receive what
an earlier one offers."""

RECEIVES: dict[str, frozenset[str]] = {
    "text_encoder": frozenset({"text_vocab", "text_length"}),
    "codebook": frozenset({"image_size"}),
    "latent": frozenset({"image_size"}),
    "prior": frozenset({"vocab_size", "grids", "text_vocab", "text_length", "text_width", "classes"}),
    "denoiser": frozenset({"channels", "size", "bounded", "text_vocab", "text_length", "text_width", "classes", "low"}),
}
"""Interface -> the fields that a system around the part decides: inside one, what its card says of them is dropped.

A reranker is not here: it takes pictures of any size, and its own size belongs to its weights.
"""


@attrs.define
class Node:
    """One part while it is being resolved: the values of its config, and its children by field name."""

    card: str
    interface: str
    cls: type
    values: dict[str, Any]
    spec: ModelSpec | None = None
    plugin: str = ""
    pinned: set[str] = attrs.field(factory=set)
    """Fields set by hand, which binding may not change."""
    children: dict[str, Node] = attrs.field(factory=dict)
    given: Any = None
    """The object handed over by `parts=`."""
    source: Path | None = None
    """Run folder whose weights the part takes."""
    source_role: str = ""

    def walk(self, role: str = "") -> Iterator[tuple[str, Node]]:
        """Yield (role, node), parts before what holds them; the root's role is empty."""
        for name, child in self.children.items():
            yield from child.walk(f"{role}.{name}".strip("."))
        yield role, self


def resolve_tree(
    name: str,
    overrides: Overrides = (),
    *,
    parts: Mapping[str, Any] | None = None,
    nodes: Mapping[str, Node] | None = None,
    classes: int | None = None,
) -> tuple[Node, Any]:
    """Return the tree of parts and the bound config of a card or run folder.

    Args:
        name: a card, an alias, or the path of a run folder.
        overrides: "field=value" strings, or a mapping from dotted field to value.
        parts: objects to put in the place of parts, by role.
        nodes: trees to put in the place of parts, by role; overrides that replace or set come after.
        classes: number of labels of the data, for a system that leaves it open.

    Raises:
        UnknownName, NotInstalled, PluginFailed, WrongApi: the four kinds of miss.
        ConfigError: an override names no field or has the wrong type.
        PartMismatch: a field set by hand disagrees with the part that decides it.
    """
    root = node_of(name)
    for role, tree in (nodes or {}).items():
        holder, field = _descend(root, tuple(role.split(".")))
        holder.children[field] = tree
    for role, part in (parts or {}).items():
        _put(root, role, part)
    _apply(root, overrides)
    if classes is not None and "classes" in root.values and root.values["classes"] is None:
        root.values["classes"] = classes
    return root, bind(root)


def _apply(root: Node, overrides: Overrides) -> None:
    """Replace parts, then set fields."""
    wanted = parse_overrides(overrides)
    _replace_parts(root, wanted)
    for path, new in wanted.items():
        _set(root, path, new)


def is_run(name: str) -> bool:
    """Return True when `name` is the path of a run folder and not a card."""
    return name not in catalogue() and (Path(name) / "run.toml").is_file()


def model_spec(card: Card) -> ModelSpec:
    """Return the spec that has the card's variant; loads its plugin."""
    plugins.require(card.plugin, card.pip)
    specs = [s for s in plugins.installed().specs(card.plugin) if isinstance(s, ModelSpec)]
    hits = [s for s in specs if card.variant in s.variants]
    if not hits:
        known = [v for s in specs for v in s.variants]
        raise UnknownName(f"plugin '{card.plugin}' has no variant; variant", card.variant, known)
    return hits[0]


def node_of(name: str, interface: str | None = None, role: str = "") -> Node:
    """Return the unbound tree of a card, or of the fitting part of a run folder, `role` where there are several."""
    if is_run(name):
        from zoo.runs import RunFolder

        return RunFolder(name).node(interface, role)
    card = catalogue().get(name)
    if interface and card.kind != interface:
        raise PartMismatch(f"'{name}' is a {card.kind}, and a {interface} is needed here")
    spec = model_spec(card)
    path = spec.variants[card.variant]
    try:
        config = locate(path)()
    except Exception as cause:
        origin = plugins.installed().origins[card.plugin]
        raise PluginFailed(f"plugin {origin}: variant '{path}' failed: {type(cause).__name__}: {cause}") from cause
    node = from_config(card.name, card.kind, config, spec, card.plugin)
    _apply(node, card.overrides)
    node.pinned.clear()  # a card's own values stand alone, like its variant's: the parts around it may decide them
    return node


def from_config(card: str, interface: str, config: Any, spec: ModelSpec | None, plugin: str) -> Node:
    """Return the tree of a config whose references are by name."""
    node = Node(card, interface, type(config), {}, spec, plugin)
    for name in fields(type(config)):
        item = getattr(config, name)
        node.values[name] = item
        if isinstance(item, Ref):
            node.children[name] = node_of(item.card, item.interface)
    return node


def _interface_of(node: Node, name: str) -> str:
    """Return the interface a reference field asks for, also when it is None now."""
    item = node.values.get(name)
    if isinstance(item, Ref):
        return item.interface
    return attrs.fields_dict(node.cls)[name].metadata.get("interface", name)


def _is_ref(node: Node, name: str) -> bool:
    return name in node.values and Ref in (fields(node.cls)[name], *get_args(fields(node.cls)[name]))


def _put(root: Node, role: str, part: Any) -> None:
    """Put an object in a part's place."""
    node, name = _descend(root, tuple(role.split(".")))
    if not _is_ref(node, name):
        raise ConfigError(no_such_field(role, name, [n for n in node.values if _is_ref(node, n)]))
    card = getattr(part, "card", None) or type(part).__name__
    config = getattr(part, "config", None)
    node.children[name] = Node(
        card=str(getattr(card, "name", card)),
        interface=_interface_of(node, name),
        cls=type(config),
        values={},
        given=part,
    )


def _descend(root: Node, path: tuple[str, ...]) -> tuple[Node, str]:
    """Return the part that holds the path's last reference or field, and what is left of the path."""
    node, rest = root, list(path)
    while len(rest) > 1 and rest[0] in node.children:
        node = node.children[rest.pop(0)]
    return node, ".".join(rest)


def _replace_parts(root: Node, wanted: dict[tuple[str, ...], Any]) -> None:
    """Apply the overrides that name a whole part, shallow ones first, and take them out of `wanted`."""
    for path in sorted(wanted, key=len):
        node, name = _descend(root, path)
        if node.given is not None or not _is_ref(node, name):
            continue
        card = wanted.pop(path)
        if card is None:
            node.children.pop(name, None)
            node.values[name] = None
            _require_optional(node, name, path)
        elif isinstance(card, str):
            node.children[name] = node_of(card, _interface_of(node, name), name)
        else:
            raise ConfigError(f"{'.'.join(path)}: expected the name of a card or a run folder, got {card!r}")


def _require_optional(node: Node, name: str, path: tuple[str, ...]) -> None:
    if type(None) not in get_args(fields(node.cls)[name]):
        raise ConfigError(f"{'.'.join(path)}: this system needs a {name}; it cannot be none")


def _set(root: Node, path: tuple[str, ...], new: Any) -> None:
    """Set one field by hand; a nested config (`train.lr`) is rebuilt with the field changed."""
    node, rest = _descend(root, path)
    where = ".".join(path)
    if node.given is not None:
        raise ConfigError(f"{where}: '{node.card}' was given as an object; set its fields before handing it over")
    first, _, deeper = rest.partition(".")
    known = fields(node.cls)
    if first not in known:
        raise ConfigError(no_such_field(where, first, known))
    if deeper:
        node.values[first] = _nested(node.values[first], known[first], deeper, new, where)
    else:
        node.values[first] = value(new, known[first], where)
    node.pinned.add(first)


def _nested(old: Any, cls: Any, path: str, new: Any, where: str) -> Any:
    first, _, deeper = path.partition(".")
    if not attrs.has(type(old)):
        holder = where.removesuffix(f".{path}").rpartition(".")[2]
        raise ConfigError(f"{where}: '{holder}' has no fields of its own here")
    known = fields(type(old))
    if first not in known:
        raise ConfigError(no_such_field(where, first, known))
    if deeper:
        item = _nested(getattr(old, first), known[first], deeper, new, where)
        return attrs.evolve(old, **{first: item})
    changed = {**plain(old), first: new}
    return structure(changed, type(old), where.rsplit(".", 1)[0])


def facts_of(node: Node, config: Any, image_size: int) -> Facts:
    """Return what a part tells the parts beside it; an object answers itself or through its config."""
    source = node.given if node.given is not None else config
    teller = source if hasattr(source, "facts") else getattr(source, "config", None)
    return teller.facts(image_size) if teller is not None and hasattr(teller, "facts") else Facts()


def bind(root: Node) -> Any:
    """Return the config of a tree with its references bound and the fields that other parts decide filled in.

    Raises:
        ConfigError: a value is out of range.
        PartMismatch: a field set by hand disagrees with the part that decides it, or parts do not fit together.
    """
    return _bind(root, {}, "")


def _bind(node: Node, offers: dict[str, tuple[Any, str]], where: str) -> Any:
    """Return the node's config with its references bound and the fields decided elsewhere filled in."""
    values = dict(node.values)
    received = RECEIVES.get(node.interface, frozenset()) & values.keys()
    if where:
        values.update(dict.fromkeys(received - node.pinned))
    _fill(node, values, offers, received, where)
    size = values.get("image_size") or 0
    inner = {k: (values[k], node.card) for k in ("image_size", "classes") if values.get(k) is not None}
    places = node.cls.places({**values, **node.children}) if hasattr(node.cls, "places") else {}
    told: list[tuple[str, Node, Any]] = []
    # A part that offers facts stands before the parts that receive them, in whatever order they were put in.
    ranks = {interface: rank for rank, interface in enumerate(OFFERS)}
    for name, child in sorted(node.children.items(), key=lambda item: ranks.get(item[1].interface, len(ranks))):
        path = f"{where}.{name}".strip(".")
        place = places.get(name, Place(size))
        around = {**inner, **_offers(told, place.image_size)}
        if place.low is not None:
            around["low"] = place.low, node.card
            if child.given is None and "low" not in fields(child.cls):
                raise PartMismatch(
                    f"{path}: '{child.card}' does not read the picture of the stage below, which it would enlarge; "
                    f"set {path}=none, or to a card with a field 'low'"
                )
        given = child.given is not None
        config = getattr(child.given, "config", None) if given else _bind(child, around, path)
        values[name] = Ref(child.card, child.interface, config, given)
        told.append((path, child, config))
    own = _offers(told, size)
    _fill(node, values, own, own.keys() & values.keys(), where)
    try:
        return node.cls(**values)
    except (TypeError, ValueError) as cause:
        text = " ".join(str(cause.args[0] if cause.args else cause).split())
        raise ConfigError(f"{where or node.card}: {text}") from None


def _offers(told: list[tuple[str, Node, Any]], image_size: int) -> dict[str, tuple[Any, str]]:
    """Return what parts, each with its path and config, say of pictures of a size: field -> (fact, path)."""
    found: dict[str, tuple[Any, str]] = {}
    for path, child, config in told:
        offers = OFFERS.get(child.interface)
        facts = facts_of(child, config, image_size) if offers else None
        for field, fact in (offers or {}).items():
            if getattr(facts, fact) is not None:
                found[field] = getattr(facts, fact), path
    return found


def _fill(node: Node, values: dict[str, Any], offers: dict[str, Any], names: Any, where: str) -> None:
    for name in sorted(names):
        if name not in offers:
            continue
        fact, giver = offers[name]
        if name in node.pinned and values[name] is not None and values[name] != fact:
            path = f"{where}.{name}".strip(".")
            raise PartMismatch(f"{path} is set to {values[name]!r}, but {giver} has {fact!r}; leave {path} open")
        values[name] = fact


def dump(config: Any, node: Node) -> dict[str, Any]:
    """Return a bound config as plain data, every part's table beginning with its card; `undump` is the way back."""
    data: dict[str, Any] = {"card": node.card, "interface": node.interface, "plugin": node.plugin}
    for name in fields(type(config)):
        item = getattr(config, name)
        if isinstance(item, Ref):
            if item.given:
                data[name] = {"card": item.card, "interface": item.interface, "given": True}
            else:
                data[name] = dump(item.config, node.children[name])
        else:
            data[name] = plain(item)
    return data


def undump(data: Mapping[str, Any], where: str = "") -> Node:
    """Return the tree of what `dump` wrote."""
    rest = dict(data)
    card, interface, plugin = rest.pop("card"), rest.pop("interface"), rest.pop("plugin", "")
    if rest.pop("given", False):
        raise PartMismatch(f"{where}: '{card}' was an object given to build; build the system and load its parts")
    spec = _spec_for(card, plugin, where)
    cls = locate(spec.config)
    known = fields(cls)
    node = Node(card, interface, cls, {}, spec, plugin)
    for name, item in rest.items():
        if name not in known:
            raise ConfigError(no_such_field(f"{where}.{name}".strip("."), name, known))
        if isinstance(item, Mapping) and "interface" in item:
            node.children[name] = undump(item, f"{where}.{name}".strip("."))
            node.values[name] = Ref(item["card"], item["interface"])
        else:
            node.values[name] = value(item, known[name], f"{where}.{name}".strip("."))
    return node


def _spec_for(card: str, plugin: str, where: str) -> ModelSpec:
    known = catalogue().cards.get(card)
    if known is not None and (not plugin or known.plugin == plugin):
        return model_spec(known)
    plugins.require(plugin, None)
    for spec in plugins.installed().specs(plugin):
        if isinstance(spec, ModelSpec) and card in spec.variants:
            return spec
    raise UnknownName("model", card, catalogue().cards, f"needed for {where}" if where else "")

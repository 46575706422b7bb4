"""`zoo list` and `zoo info`."""

from __future__ import annotations

import json
from typing import Any

import attrs
import click

from zoo import registry
from zoo.catalogue import Card
from zoo.errors import UnknownName
from zoo.interfaces import INTERFACES


def human(count: int) -> str:
    """Return a count as 12.3M; 0 is a dash (fitted, no parameters)."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count) if count else "-"


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the cards as JSON.")
@click.option("--markdown", is_flag=True, help="Print a Markdown table.")
@click.option("--kind", help="Only models of this kind: codebook, prior, reranker, generator ...")
def list_models(as_json: bool, markdown: bool, kind: str | None) -> None:
    """List the models that can be built, ours and those of installed plugins."""
    cards = [card for card in registry.list_models() if kind is None or card.kind == kind]
    if kind is not None and kind not in INTERFACES:
        raise UnknownName("kind", kind, INTERFACES)
    if markdown:
        click.echo(table(cards))
        return
    if as_json:
        click.echo(json.dumps([attrs.asdict(card) for card in cards], indent=1))
        return
    width = max((len(card.name) for card in cards), default=0)
    for card in cards:
        click.echo(f"{card.name:<{width}}  {card.kind:<9}  {human(card.params):>7}  {card.summary}")


def table(cards: list[Card]) -> str:
    """Return cards as a Markdown table, as the README has it."""
    rows = [f"| `{c.name}` | {c.kind} | {human(c.params)} | {c.summary} |" for c in cards]
    return "\n".join(["| name | kind | parameters | |", "|---|---|---|---|", *rows])


@click.command()
@click.argument("name")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="prior.depth=2, codebook=vqvae ...")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def info(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Show what NAME is made of: its parts, their parameters, and every field that --set can change."""
    facts = registry.info(name, overrides)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for key in ("name", "kind", "plugin", "summary", "paper", "resolution", "license"):
        if facts.get(key):
            click.echo(f"{key:<11} {facts[key]}")
    click.echo(f"{'params':<11} {facts['params']:,}")
    for role, part in facts["parts"].items():
        click.echo(f"  {role:<20} {part['card']:<20} {part['params']:>15,}")
    if facts["layouts"]:
        layouts = [f"{', '.join(names)} ({role})" for role, names in facts["layouts"].items()]
        click.echo(f"{'layouts':<11} {'; '.join(layouts)}: public weights, for `zoo import`")
    for what, said in facts["notes"].items():
        click.echo(f"{what:<11} {said}")
    click.echo("fields")
    for path, item in _flat(facts["config"]):
        click.echo(f"  {path} = {json.dumps(item)}")


def _flat(config: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return (dotted field, value) of a plain config; a reference is its card and then its fields."""
    if not isinstance(config, dict):
        return [(path, config)]
    rows: list[tuple[str, Any]] = []
    if "card" in config and "config" in config:
        rows.append((path, config["card"]))
        config = config["config"] or {}
    for key, item in config.items():
        rows += _flat(item, f"{path}.{key}".strip("."))
    return rows

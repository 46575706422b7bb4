"""`zoo plugins` and `zoo doctor`."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import click

from zoo import plugins as found
from zoo.errors import ZooError
from zoo.specs import ModelSpec


def _status(name: str) -> dict[str, Any]:
    installed = found.installed()
    origin = installed.origins[name]
    row = {"name": name, "distribution": origin.distribution, "version": origin.version}
    try:
        specs = installed.specs(name)
    except ZooError as error:
        return {**row, "status": "failed", "error": str(error), "provides": []}
    named = [v for s in specs if isinstance(s, ModelSpec) for v in s.variants]
    other = [s.name for s in specs if not isinstance(s, ModelSpec)]
    return {**row, "status": "ok", "provides": [*named, *other]}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def plugins(as_json: bool) -> None:
    """List the installed plugins, what each provides, and why one that fails does."""
    rows = [_status(name) for name in found.installed().origins]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    for row in rows:
        click.echo(f"{row['name']:<14} {row['distribution']} {row['version']:<10} {row['status']}")
        click.echo(f"    {row['error'] if row['status'] == 'failed' else ', '.join(row['provides'])}")


_PROBE = """
import sys
from zoo import plugins
from zoo.catalogue import catalogue
from zoo.resolution import resolve_tree
from zoo.specs import DatasetSpec, ModelSpec, locate
specs = plugins.installed().specs(sys.argv[1])
for spec in specs:
    for path in [spec.config, *spec.variants.values()] if isinstance(spec, ModelSpec) else []:
        locate(path)
    if not isinstance(spec, DatasetSpec):  # a dataset may wait for its optional extra
        locate(spec.build)
for card in catalogue().cards.values():
    if card.plugin == sys.argv[1]:
        resolve_tree(card.name)
"""


@click.command()
def doctor() -> None:
    """Load every plugin in a process of its own, with all the code it names, and say what is wrong."""
    bad = 0
    for name, origin in found.installed().origins.items():
        done = subprocess.run([sys.executable, "-c", _PROBE, name], capture_output=True, text=True)
        if done.returncode == 0:
            click.echo(f"{name:<14} {origin.distribution} {origin.version}  ok")
            continue
        bad += 1
        lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
        click.echo(f"{name:<14} {origin.distribution} {origin.version}  FAILED  {lines[-1]}")
        click.echo(f"    mend it, or type: pip uninstall {origin.distribution}")
    if bad:
        raise ZooError(f"{bad} plugin{'s fail' if bad > 1 else ' fails'}; the rest work")

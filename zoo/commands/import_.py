"""`zoo import`: a public checkpoint as a finished part of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click


@click.command("import")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run folder: new, or one of NAME.")
@click.option("--part", metavar="ROLE", help="Which part of a whole system the weights are: codebook, prior ...")
@click.option("--layout", help="The layout of the file. Default: the one that fits; `zoo info NAME` lists them.")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="activation=gelu, codebook=vqvae ...")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def import_public(
    name: str, path: Path, out: Path, part: str | None, layout: str | None, overrides: tuple[str, ...], as_json: bool
) -> None:
    """Read the public weights PATH, a file or a folder, into a run folder of the card NAME.

    \b
    zoo import dvae-8192 FOLDER --out runs/dvae            # encoder.pkl and decoder.pkl
    zoo import clip-vit-b32 ViT-B-32.pt --out runs/clip
    zoo import dalle-12b FOLDER --part codebook --out runs/dalle

    The folder is then what a training run leaves: `zoo.load`, `zoo sample`, `--set codebook=runs/dvae`. A second
    import into it adds another part. A published tokenizer's files that lie beside the weights are read with them.
    Pickles are read without running or importing anything they name. What `zoo export` wrote is read too.
    """
    from zoo import importing
    from zoo.front import bar

    with bar(1, "importing", "tensor") as progress:

        def show(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        facts = importing.import_public(name, path, out, part=part, layout=layout, overrides=overrides, progress=show)
    if as_json:
        click.echo(json.dumps(facts, indent=1))
        return
    for title, text in _lines(facts):
        click.echo(f"{title:<10} {text}")


def _lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the facts as (title, text)."""
    converted = [f"{count:,} tensors converted, {change}" for change, count in facts["converted"].items()]
    rows = [
        ("part", f"{facts['part']} ({facts['card']})"),
        ("layout", facts["layout"]),
        ("tensors", f"{facts['tensors']:,} from {facts['read']:,} in the file"),
        ("params", f"{facts['params']:,}"),
        ("dtype", "; ".join([facts["dtype"], *converted])),
    ]
    if dropped := facts["dropped"]:
        some = ", ".join(dropped[:3]) + (" ..." if len(dropped) > 3 else "")
        rows.append(("dropped", f"{len(dropped):,} tensors of the file, no weights of this model: {some}"))
    rows += _sources(facts)
    for other in facts["beside"]:
        rows.append(("beside", f"{other['part']} ({other['card']}), layout {other['layout']}"))
        rows += _sources(other)
    rows += [("lacking", f"{role}: {text}") for role, text in facts["lacking"].items()]
    if facts["ignored"]:
        rows.append(("ignored", ", ".join(facts["ignored"])))
    rows.append(("license", f"{facts['license'] or 'not stated'} (of the card; the weights keep their publisher's)"))
    rows.append(("written", str(Path(facts["run"]) / facts["file"])))
    if facts["not_ready"]:
        rows.append(("not ready", ", ".join(facts["not_ready"])))
    if facts["left_out"]:
        rows.append(("note", facts["left_out"]))
    return rows


def _sources(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [("source", f"{x['name']}  {x['bytes']:,} bytes  sha256 {x['sha256']}") for x in facts["files"]]

"""`zoo embed`: the captions of some data through a system's frozen text encoder, once, for training to read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoo.errors import BadRun, ConfigError, NotReady, PartMismatch
from zoo.resolution import is_run

if TYPE_CHECKING:
    import torch

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@click.command()
@click.argument("name")
@click.option("--data", required=True, help="Whose captions: shapes, folder:PATH ...")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="A new folder.")
@click.option("--split", default="train", show_default=True, help="train, validation or heldout.")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="text_encoder=runs/t5 ...")
@click.option("--chunk", type=click.IntRange(1), default=64, show_default=True, help="Captions encoded at a time.")
@click.option("--device", help="cpu, cuda ... Default: cuda where there is one.")
@click.option("--dtype", type=click.Choice(list(DTYPES)), default="fp32", show_default=True, help="Of the arithmetic.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def embed(
    name: str, data: str, out: Path, split: str, overrides: tuple[str, ...], chunk: int, device: str | None, dtype: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Compute the embeddings of all captions of some data by the text encoder of NAME, a run folder or a system's card.

    \b
    zoo embed runs/imagen --data folder:my/pictures --out embeddings
    zoo embed imagen --set text_encoder=runs/t5 --set tokenizer=runs/spiece --data folder:my/pictures --out embeddings
    python scripts/train.py --model runs/imagen --part sr256 --data folder:my/pictures --embeddings embeddings

    Embeddings are kept in bfloat16, without padding. Training refuses those of another encoder.
    """
    import torch

    from zoo import registry
    from zoo.front import bar
    from zoo.train.captions import Distinct
    from zoo.train.embedded import encoding, maker_of
    from zoo.train.embeddings import build

    if out.is_dir() and any(out.iterdir()):
        raise BadRun(f"'{out}' has something in it; choose another --out, or delete it")
    home = _device(device)
    system, prints = _parts(name, overrides, home, getattr(torch, DTYPES[dtype]))
    dataset = registry.open_dataset(data, split=split, size=getattr(system.config, "image_size", None) or 32)
    distinct = Distinct.of(dataset.texts())
    with bar(len(distinct), "embedding", "caption") as shown:
        store = build(
            out, dataset.texts, encoding(system, home), maker_of(system, prints), distinct=distinct, chunk=chunk,
            progress=shown.update,
        )  # fmt: skip
    tokens, width = store.values.shape
    facts = {"captions": len(store), "tokens": tokens, "width": width, "bytes": store.values.nbytes, "out": str(out)}
    if as_json:
        click.echo(json.dumps(facts, indent=1))
    else:
        click.echo(f"{len(store):,} captions, {tokens:,} tokens of width {width:,}: {out}")


def _device(said: str | None) -> torch.device:
    """Return the device of this name, or the best there is.

    Raises:
        ConfigError: there is none of this name.
    """
    import torch

    if said is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.empty(1, device=said).device
    except (RuntimeError, AssertionError) as cause:  # which of them, torch decides by the name
        raise ConfigError(f"--device {said}: {str(cause).splitlines()[0]}") from None
    if found.type == "meta":
        raise ConfigError("--device meta holds no values; give cpu, cuda ...")
    return found


def _parts(name: str, overrides: tuple[str, ...], device: torch.device, dtype: Any) -> tuple[Any, dict[str, str]]:
    """Return a system of which the text encoder and the tokenizer alone are there, and their weights' fingerprints.

    Raises:
        PartMismatch: NAME has no such parts.
        NotReady: one has no weights.
        DoesNotFit: the device has too little free memory for them.
    """
    from torch import nn

    from zoo.construct import construct, place
    from zoo.resolution import resolve_tree
    from zoo.runs import RunFolder, load_sources
    from zoo.train.embedded import ENCODER, TOKENIZER, roles_of

    node, config = resolve_tree(name, overrides)
    if is_run(name):
        RunFolder(name).check_lineage()
    lacking = [role for role in (ENCODER, TOKENIZER) if node.interface != "generator" or role not in node.children]
    if lacking:
        raise PartMismatch(
            f"'{name}' is no system with a {ENCODER} and a {TOKENIZER}; name one that has both, with "
            f"--set {ENCODER}=RUN --set {TOKENIZER}=RUN where they are parts of other runs"
        )
    roles = roles_of(construct(node, config, device="meta"))
    prints = {
        role: RunFolder(part.source).fingerprint(part.source_role)
        for role, part in node.walk()
        if role in roles and part.source is not None
    }
    home = place(node, config, device=device, dtype=dtype, used=set(roles))
    system = construct(node, config, device=home, dtype=dtype, used=set(roles))
    load_sources(node, system, roles)
    for role in roles:
        part = system.parts[role]
        if isinstance(part, nn.Module) and part.state_dict() and role not in prints:
            raise NotReady(f"'{role}' of '{name}' has no weights: train or import it, or --set {role}=RUN")
    return system.eval(), prints

"""ImageGPT and transformers' ImageGPT, trained for the same time by the same lines, in bits per dimension.

Both have one width, depth, number of heads, vocabulary and number of positions, no dropout, and the codes of one
palette; each begins as its own library has it. They see the same batches in the same order, with the optimiser,
clipping and learning-rate law of our card's recipe. The law goes by the share of the time that is over, so whoever
makes more updates warms up and cools down in the same time; it ends at 0, and the last weights count, without an
average. Only updates take of the time, not reading, encoding or evaluation. One training follows the other.

Bits per dimension are of the picture as the palette paints it: nats a code / ln 2 / 3. A uniform palette, which a
transformer with a zero head is too, has log2(K) / 3.

    python -m zoo.bench.imagegpt_run --work runs/bench-imagegpt        twice ten minutes

A training that is done is not made again; one that was stopped begins anew.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import click
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo import registry
from zoo.bench.imagegpt import Size, peer_model
from zoo.bench.timing import Row
from zoo.errors import BadRun, ConfigError
from zoo.evaluate.figures import batches
from zoo.interfaces import Batch
from zoo.parts import Recipe
from zoo.resolution import resolve_tree
from zoo.rng import Rng
from zoo.train import optim
from zoo.train.feed import Feed
from zoo.train.stage import recipe_of
from zoo.train.world import World
from zoo.weights import load_into, load_tensors, save_tensors

PART, OURS, PEER = "prior", "ours", "transformers"
VALIDATION, CHUNK = 2048, 16
"""Most pictures that are evaluated, and of them at a time."""


@attrs.frozen(kw_only=True)
class Work:
    """What is trained, and where."""

    folder: Path
    model: str = "imagegpt"
    data: str = "emoji"
    minutes: float = 10.0
    """Of updates, for each side."""
    seed: int = 0

    def kept(self, name: str) -> Path:
        """Return the file of a finished side, or of the palette."""
        return self.folder / f"{name}.safetensors"

    def facts(self) -> dict[str, Any]:
        """Return what kept files must have been made with."""
        return {**attrs.asdict(self, filter=attrs.filters.exclude("folder")), "threads": torch.get_num_threads()}

    def save(self, name: str, module: nn.Module, **more: Any) -> None:
        """Keep a module's weights."""
        save_tensors(self.kept(name), module.state_dict(), {"made": self.facts(), **more})

    def load(self, name: str, module: nn.Module) -> dict[str, Any]:
        """Load kept weights into a module; return what was written beside them.

        Raises:
            BadRun: they were made with other settings.
        """
        tensors, said = load_tensors(self.kept(name))
        if said["made"] != self.facts():
            raise BadRun(f"{self.kept(name)}: made with {said['made']}, not {self.facts()}; take another --work")
        load_into(module, tensors, self.kept(name))
        return said


@attrs.frozen
class Side:
    """A model, and the mean nats a code of codes [B,N] under it."""

    model: nn.Module
    loss: Callable[[Tensor], Tensor]


@attrs.frozen(kw_only=True)
class Found:
    """What came of a side."""

    nats: float
    """A code of the validation pictures."""
    updates: int
    tokens: int
    """Codes read in training."""

    @property
    def bits(self) -> float:
        """Bits per dimension."""
        return self.nats / math.log(2) / 3


def uniform(vocab: int) -> float:
    """Return the bits per dimension of a palette all of whose colours are equally likely."""
    return math.log2(vocab) / 3


def prepared(work: Work) -> Any:
    """Return our system, its transformer fresh and its palette fitted on the training split.

    Raises:
        ConfigError: its transformer does what the peer cannot do.
    """
    system = registry.build_system(*resolve_tree(work.model), seed=work.seed)
    if not system.prior.causal or system.reads_what != "nothing":
        raise ConfigError(f"model: the peer is causal and reads nothing, unlike the prior of '{work.model}'")
    if work.kept("palette").exists():
        work.load("palette", system.codebook)
    else:
        system.codebook.fit(opened(work, system, "train"), seed=work.seed)
        work.save("palette", system.codebook)
    return system.eval()


def opened(work: Work, system: Any, split: str) -> Any:
    """Return a split of the data, as the transformer's recipe has it."""
    transform = recipe_of(system, PART).transform
    return registry.open_dataset(work.data, split=split, size=system.config.image_size, transform=transform)


def our_side(system: Any, seed: int) -> Side:
    """Return our transformer; the seed has decided its weights already."""

    def loss(codes: Tensor) -> Tensor:
        return system.loss(PART, Batch(codes=codes), step=0, rng=Rng(seed, range(len(codes))))["loss"]

    return Side(system.prior, loss)


def peer_side(system: Any, seed: int) -> Side:
    """Return transformers' of the same size, its last id the start token.

    Raises:
        NotInstalled: transformers is missing.
    """
    torch.manual_seed(seed)
    config, vocab = system.prior.config, system.prior.vocab_size
    side = system.config.image_size
    model = peer_model(Size(width=config.width, depth=config.depth, heads=config.heads, side=side, vocab=vocab))

    def loss(codes: Tensor) -> Tensor:
        inputs = torch.cat((torch.full_like(codes[:, :1], vocab), codes[:, :-1]), 1)
        return F.cross_entropy(model(input_ids=inputs, use_cache=False).logits.flatten(0, 1), codes.flatten())

    return Side(model, loss)


SIDES: dict[str, Callable[[Any, int], Side]] = {OURS: our_side, PEER: peer_side}


def train(side: Side, codes_at: Callable[[int], Tensor], recipe: Recipe, seconds: float) -> int:
    """Train for so many seconds; return the updates made.

    Args:
        side: the model, and its loss.
        codes_at: returns the codes [B,N] of an update, counted from 0; is not timed.
        recipe: its optimiser, clipping and rate, of which `recipe.steps` is the whole of the time.
        seconds: of updates alone.
    """
    optimizer = optim.optimizer(nn.ModuleList([side.model]), recipe)
    assert optimizer is not None
    side.model.train()
    spent, updates = 0.0, 0
    while spent < seconds:
        codes = codes_at(updates)
        began = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * optim.rate(recipe, int(spent / seconds * recipe.steps), recipe.steps)
        optimizer.zero_grad(set_to_none=True)
        side.loss(codes).backward()
        if recipe.clip is not None:
            nn.utils.clip_grad_norm_(side.model.parameters(), recipe.clip)
        optimizer.step()
        spent += time.perf_counter() - began
        updates += 1
    return updates


@torch.no_grad()
def nats(side: Side, codes: Tensor) -> float:
    """Return the mean nats a code of codes [n,N]."""
    side.model.eval()
    return sum(float(side.loss(some)) * len(some) for some in codes.split(CHUNK)) / len(codes)


def validation_codes(work: Work, system: Any) -> Tensor:
    """Return the codes [n,N] that figures are of."""
    data = opened(work, system, "validation")
    return torch.cat([system.encode(PART, batch).codes for _, batch in batches(data, VALIDATION)])


def look(work: Work, system: Any, name: str, validation: Tensor) -> Found:
    """Return what came of a side, having trained it if that is not done."""
    recipe = recipe_of(system, PART)
    side = SIDES[name](system, work.seed)
    if not work.kept(name).exists():
        print(f"{name}: {work.minutes:g} minutes into {work.kept(name)}", file=sys.stderr)
        data = opened(work, system, "train")
        feed = Feed(read=data.read, length=len(data), batch=recipe.batch, seed=work.seed, world=World())
        updates = train(side, lambda step: system.encode(PART, feed.at(step)).codes, recipe, 60 * work.minutes)
        work.save(name, side.model, updates=updates)
    updates = work.load(name, side.model)["updates"]
    return Found(nats=nats(side, validation), updates=updates, tokens=updates * recipe.batch * system.prior.length)


def as_rows(work: Work, ours: Found, peer: Found, sizes: dict[str, int]) -> list[Row]:
    """Return the rows; a ratio above 1 is in our favour."""
    even, bits = uniform(sizes["vocab"]), "bits per dimension"

    name = f"{work.model} on {work.data}, beside"
    return [
        Row(f"{name} a uniform palette", ours.bits, even, even / ours.bits, bits, sizes),
        Row(f"{name} {PEER}", ours.bits, peer.bits, peer.bits / ours.bits, bits, sizes),
        Row(f"{name} {PEER}", ours.nats, peer.nats, peer.nats / ours.nats, "nats a code", sizes),
        Row(f"{name} {PEER}", ours.updates, peer.updates, ours.updates / peer.updates, "updates", sizes),
        Row(f"{name} {PEER}", ours.tokens, peer.tokens, ours.tokens / peer.tokens, "tokens seen", sizes),
    ]


def table(ours: Found, peer: Found, vocab: int) -> str:
    """Return the figures for a reader."""
    lines = [
        f"{'':16}{'nats a code':>12}{'bits/dim':>10}{'updates':>9}{'tokens seen':>13}",
        f"{'uniform palette':16}{math.log(vocab):12.4f}{uniform(vocab):10.4f}",
    ]
    for name, one in ((OURS, ours), (PEER, peer)):
        lines.append(f"{name:16}{one.nats:12.4f}{one.bits:10.4f}{one.updates:9,}{one.tokens:13,}")
    return "\n".join(lines)


def rows(work: Work | None = None) -> list[Row]:
    """Return the rows, having trained what is not trained yet; the table goes to stderr.

    Raises:
        NotInstalled: transformers is missing.
        BadRun: what is kept was made with other settings.
    """
    if work is None:
        with tempfile.TemporaryDirectory(prefix="zoo-bench-") as folder:
            return rows(Work(folder=Path(folder)))
    system = prepared(work)
    validation = validation_codes(work, system)
    ours, peer = (look(work, system, name, validation) for name in SIDES)
    config = system.prior.config
    sizes = {
        "width": config.width, "depth": config.depth, "heads": config.heads, "vocab": system.prior.vocab_size,
        "tokens": system.prior.length, "batch": config.train.batch, "pictures": len(validation),
        "seconds": round(60 * work.minutes), "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(table(ours, peer, sizes["vocab"]), file=sys.stderr)
    return as_rows(work, ours, peer, sizes)


@click.command()
@click.option("--work", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where both are kept.")
@click.option("--model", default="imagegpt", show_default=True)
@click.option("--data", default="emoji", show_default=True)
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, help="Of a side.")
@click.option("--seed", default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print a list of {name, ours, peer, ratio, unit, sizes}.")
def main(work: Path, threads: int, as_json: bool, **settings: Any) -> None:
    """Train both, and print a table."""
    torch.set_num_threads(threads)
    found = rows(Work(folder=work, **settings))
    if as_json:
        click.echo(json.dumps([attrs.asdict(row) for row in found], indent=1))


if __name__ == "__main__":
    main()

"""What a training command can be told, and the command line that says it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import click
from attrs import validators as v

from zoo import front
from zoo.planning.jobs import PRECISIONS
from zoo.planning.layout import SHARDS

_positive = v.optional(v.ge(1))


def _unless_none(said: str | None) -> str | None:
    return None if said == "none" else said


@attrs.frozen(kw_only=True)
class TrainOptions:
    """One training command. None leaves a choice to the card, the recipe or the run folder."""

    model: str
    """A card, an alias, or a run folder."""
    part: str | None = None
    """The stage to train; None: all that are not trained yet, in order."""
    data: str | None = None
    """"shapes", "folder:PATH", "cifar10:PATH" ...; None: what the run was begun with, else the card's default."""
    init: str | None = None
    """Whose weights training starts from: a run folder, or a safetensors file of the one part trained; None: new ones,
    or those the run was begun from."""
    embeddings: Path | None = None
    """A folder of captions' embeddings that `zoo embed` made; None: those of small data are kept in the run."""
    steps: int | None = attrs.field(default=None, validator=_positive)
    """Updates of each stage; None: the recipe's."""
    batch: int | None = attrs.field(default=None, validator=_positive)
    """Samples of the global batch, whatever the number of processes; None: the recipe's."""
    accumulate: int | None = attrs.field(default=None, validator=_positive)
    """Micro-batches a process's share is split into; None: the recipe's."""
    seed: int | None = None
    """Decides initial weights, order and all random numbers; None: the run's, else 0."""
    engine: str = "auto"
    """A training engine's name; "auto": torch for one process, deepspeed under a launcher of several."""
    engine_config: Path | None = None
    """The engine's own settings (DeepSpeed's JSON)."""
    zero: int | None = attrs.field(default=None, validator=v.optional(v.in_((0, 1, 2, 3))))
    """ZeRO stage, of an engine that shards."""
    precision: Literal["fp32", "bf16", "fp16", "resblock"] = attrs.field(default="fp32", validator=v.in_(PRECISIONS))
    """Arithmetic of the forward and backward pass."""
    recompute: bool = False
    """Recompute residual branches in the backward pass instead of keeping their activations: less memory, more work."""
    reducer: str | None = attrs.field(default=None, converter=_unless_none)
    """What averages gradients between copies of the model, "name" or "name:settings"; None: the plain mean."""
    shard: Literal["machine", "all"] | None = attrs.field(default=None, validator=v.optional(v.in_(SHARDS)))
    """Which processes share a copy of the model in shards; None: see `zoo.planning.layout.shard_of`."""
    per_node: int | None = attrs.field(default=None, validator=_positive)
    """Processes of a machine; None: as the launcher says."""
    timeout: float = attrs.field(default=30.0, validator=v.gt(0))
    """Minutes for which a process waits for the others before it gives up."""
    set: tuple[str, ...] = ()
    """Overrides "prior.depth=2"."""
    resume: bool = False
    """Go on from the newest whole checkpoint, and pass over stages that are done."""
    out: Path | None = None
    """The run folder; None: runs/MODEL, or the model itself where that is a run folder."""
    save_every: int | None = attrs.field(default=None, validator=_positive)
    """Updates between two checkpoints; None: a tenth of the stage, 500 at most."""
    sample_every: int | None = attrs.field(default=None, validator=v.optional(v.ge(0)))
    """Updates between two sample pictures, 0 for none; None: a quarter of the stage."""
    keep: int = attrs.field(default=2, validator=v.ge(1))
    """Checkpoints kept of each stage."""


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--model", required=True, help="A model of `zoo list`, or a run folder to go on with.")
@click.option("--part", help="Train this part alone, such as codebook or prior. Default: all that are left, in order.")
@click.option(
    "--data", help="shapes, emoji, folder:PATH, mnist:PATH, cifar10:PATH ... Default: the run's, else the model's own."
)
@click.option("--init", metavar="RUN|FILE", help="Start from these weights: a run folder, or a part's safetensors.")
@click.option(
    "--embeddings",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Captions' embeddings by a frozen text encoder, which `zoo embed` made.",
)
@click.option("--steps", type=click.IntRange(1), help="Updates. Default: the recipe's.")
@click.option("--batch", type=click.IntRange(1), help="Global batch, whatever the number of processes.")
@click.option("--accumulate", type=click.IntRange(1), help="Split the batch into this many, to save memory.")
@click.option("--seed", type=int, help="Decides everything random. Default: 0.")
@click.option("--engine", default="auto", show_default=True, help="auto, torch, double, deepspeed, or a plugin's.")
@click.option(
    "--deepspeed-config",
    "--deepspeed_config",
    "engine_config",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Your own DeepSpeed JSON; it may not contradict the flags.",
)
@click.option("--zero", type=click.IntRange(0, 3), help="ZeRO stage (engine deepspeed).")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--recompute", is_flag=True, help="Recompute residual branches in the backward pass: less memory.")
@click.option("--shard", type=click.Choice(SHARDS), help="Share a copy of the model inside each machine, or by all.")
@click.option("--per-node", type=click.IntRange(1), help="Processes of a machine. Default: as the launcher says.")
@click.option("--reducer", help="Gradient reducer between copies: powersgd, powersgd-dalle:rank=128 ...")
@click.option("--set", "set", multiple=True, metavar="FIELD=VALUE", help="Change a field: --set prior.depth=2.")
@click.option("--resume", is_flag=True, help="Go on from the newest whole checkpoint.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Run folder. Default: runs/MODEL.")
@click.option("--save-every", type=click.IntRange(1), help="Updates between checkpoints.")
@click.option("--sample-every", type=click.IntRange(0), help="Updates between sample pictures; 0: none.")
@click.option("--keep", type=click.IntRange(1), default=2, show_default=True, help="Checkpoints kept of each part.")
@click.option(
    "--timeout",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Minutes to wait for other processes.",
)
@click.option("--local_rank", "--local-rank", "local_rank", type=int, hidden=True, help="Given by launchers; unused.")
def command(local_rank: int | None, **given: Any) -> None:
    """Train a model, or one part of it, into a run folder.

    \b
    python scripts/train.py --model dalle                          everything, on embedded data
    python scripts/train.py --model dalle --part codebook --data emoji --out runs/e
    python scripts/train.py --model dalle --part prior --out runs/e --steps 3000 --set prior.train.lr=1e-3
    python scripts/train.py --model dalle --part prior --init runs/e --data folder:pictures --out runs/mine
    python scripts/train.py --model dalle --out runs/e --resume    after a stop or a crash

    Ctrl-C saves a checkpoint and stops. The folder holds metrics.jsonl, curves, samples, checkpoints and the
    finished parts; sample it with: zoo sample runs/e "red heart" --out grid.png. Add --debug for a traceback.
    """
    from zoo.train.faults import guarded
    from zoo.train.run import run

    guarded(lambda: run(TrainOptions(**given)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the training command; return its exit code.

    0 done, 2 the user's mistake (one line on stderr), 130 Ctrl-C, 143 SIGTERM, 1 a failure.
    """
    speaks = os.environ.get("RANK", "0") == "0"
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else the end of one process is a stack of C++ in another
    logging.basicConfig(level=logging.INFO if speaks else logging.ERROR, format="%(message)s", stream=sys.stderr)
    code = _main(argv, speaks)
    if code == 2 and "ZOO_MISTAKE" in os.environ:  # torchrun keeps exit codes to itself; scripts/supervise asks
        Path(os.environ["ZOO_MISTAKE"]).touch()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # backends that wait for each other on the way out may hang
    return code


def _main(argv: Sequence[str] | None, speaks: bool) -> int:
    from zoo.train.interrupt import Interrupted
    from zoo.train.loop import Diverged

    try:
        return front.run(command, "train.py", argv, speaks=speaks)
    except Interrupted as stop:
        if speaks:
            print(f"train.py: {stop}, and saved; go on with --resume", file=sys.stderr)
        return stop.exit_code
    except Diverged as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1

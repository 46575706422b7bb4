"""`zoo sample`: pictures from a trained run, as a captioned grid."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from zoo import registry
from zoo.errors import BadRun, ConfigError, PartMismatch
from zoo.resolution import is_run


@click.command()
@click.argument("run", metavar="RUN")
@click.argument("prompts", metavar="PROMPT...", nargs=-1)
@click.option("-n", "--number", type=click.IntRange(1), default=8, show_default=True, help="Pictures a prompt.")
@click.option("--rerank", type=click.IntRange(1), help="Draw this many candidates a prompt and keep the best NUMBER.")
@click.option("--seed", type=int, default=0, show_default=True, help="Decides every picture.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=Path("grid.png"), show_default=True)
@click.option("--temperature", type=click.FloatRange(0), help="Divides the logits; the system's own if not given.")
@click.option("--top-k", type=click.IntRange(1), help="Keep the k likeliest codes.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), help="Keep the likeliest codes that reach p.")
@click.option("--guidance", type=click.FloatRange(0), help="Classifier-free guidance; of a cascade, in every stage.")
@click.option(
    "--sampling",
    "changes",
    multiple=True,
    metavar="FIELD=VALUE",
    help="How denoisers are sampled: sampler=ddim, steps=20, threshold=static; of one stage alone base.steps=20.",
)
@click.option("--from", "begin", metavar="PICTURE", help="Begin from a picture of yours; --strength says how far.")
@click.option(
    "--strength",
    type=click.FloatRange(0, 1, min_open=True),
    help="With --from: 1 keeps nothing of the picture, little keeps much.  [default: 0.6, with --mask 1]",
)
@click.option("--mask", metavar="PICTURE", help="With --from: draw anew where this picture is black, keep the white.")
@click.option("--enlarge", metavar="PICTURE", help="Give a picture of one stage's size to the stages after it.")
@click.option("--stages", "by_stage", is_flag=True, help="Show what each stage makes, side by side, one row a prompt.")
@click.option("--chunk", type=click.IntRange(1), default=128, show_default=True, help="Candidates drawn at a time.")
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the sampling step: several times faster once that is done, which takes a second or two a layer.",
)
@click.option("--complete", metavar="PICTURE[,...]", help="Continue the upper part of your own pictures, N a row.")
@click.option(
    "--keep",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.5,
    show_default=True,
    help="Share of the picture, from the top, that --complete is given.",
)
def sample(
    run: str, prompts: tuple[str, ...], number: int, rerank: int | None, seed: int, out: Path, chunk: int,
    compiled: bool, complete: str | None, keep: float, changes: tuple[str, ...], begin: str | None,
    strength: float | None, mask: str | None, enlarge: str | None, by_stage: bool, **how: Any,
) -> None:  # fmt: skip
    """Draw pictures of each PROMPT from the run folder RUN and write a captioned PNG grid.

    \b
    zoo sample runs/dalle "a red circle above a blue square" -n 8 --rerank 64 --seed 0 --out grid.png
    zoo sample runs/imagegpt --complete half.png,other.png -n 4 --keep 0.5 --out completed.png
    zoo sample runs/imagen "a small red cross at the top left" --guidance 3 --sampling sampler=ddim --stages
    zoo sample runs/imagen "a green square" --from mine.png --strength 0.6

    Without a PROMPT pictures are unconditional; a model that reads labels takes integers. With --complete a row of the
    grid is what was given, N continuations and the original; a picture of another size is cropped to its middle square.
    """
    if not is_run(run):
        raise BadRun(f"'{run}' is not a run folder (no run.toml); train one: python scripts/train.py --model dalle")
    generator = registry.load(run)
    if not hasattr(generator, "generate"):
        raise PartMismatch(f"'{run}' trained a {generator.card} alone; a whole system is needed to sample")
    asked = as_prompts(generator, prompts)
    if compiled:
        generator.compile_sampling()
    how = {name: x for name, x in how.items() if x is not None}
    how |= {"sampling": changes} if changes else {}
    _check_settings(generator, how)
    how |= {"seed": seed, "chunk": chunk}
    if complete is None:
        given = _given(generator, begin, strength, mask, enlarge)
        how |= {} if given is None else {"given": given}
        if by_stage and rerank is not None:
            raise ConfigError("--stages shows the first candidate of each prompt: leave --rerank out")
        if by_stage:
            _show_stages(generator, asked, out, how)
        else:
            _draw(generator, asked, number, rerank, out, how)
    else:
        if by_stage or begin is not None or enlarge is not None or mask is not None or strength is not None:
            raise ConfigError("--complete is of codes; --from, --mask, --strength, --enlarge and --stages of denoisers")
        if rerank is not None:
            raise ConfigError("--rerank chooses by caption; with --complete every continuation is shown: leave it out")
        _complete(generator, complete, asked if prompts else [], number, keep, out, how)


def _check_settings(generator: Any, how: dict[str, Any]) -> None:
    """Refuse a setting that the system does not have."""
    for name in how:
        if name not in generator.SETTINGS:
            known = ", ".join(f"--{known.replace('_', '-')}" for known in generator.SETTINGS)
            raise ConfigError(f"--{name.replace('_', '-')}: '{generator.card}' draws otherwise; it has {known}")


def _given(
    generator: Any, begin: str | None, strength: float | None, mask: str | None, enlarge: str | None
) -> Any:  # fmt: skip
    """Return the pictures that a cascade begins from, or None."""
    if begin is None and (mask is not None or strength is not None):
        raise ConfigError("--mask and --strength are of a picture to begin from; give it with --from")
    if begin is None and enlarge is None:
        return None
    if begin is not None and enlarge is not None:
        raise ConfigError("--from begins a picture anew and --enlarge keeps it: give one of them")
    if not hasattr(generator, "stage_pictures"):
        raise PartMismatch(f"'{generator.card}' has no denoisers: it cannot begin from a picture; see --complete")
    from zoo.generators.given import from_files

    return from_files(generator, begin=begin, strength=strength, mask=mask, enlarge=enlarge)


def _show_stages(generator: Any, asked: list[Any], out: Path, how: dict[str, Any]) -> None:
    """Write a grid with a row a prompt and a column a stage, all as large as the last."""
    import torch

    from zoo.data.images import save_grid
    from zoo.nn.resize import nearest

    if not hasattr(generator, "stage_pictures"):
        raise PartMismatch(f"'{generator.card}' draws in one stage; leave --stages out")
    found = generator.stage_pictures(asked, **how)
    size = generator.config.image_size
    rows = torch.stack([nearest(images, size) for images in found.values()], dim=1).flatten(0, 1)
    said = [f"{'' if p is None else p} ({role})" for p in asked for role in found]
    save_grid(out, rows, said, columns=len(found))
    click.echo(f"{out}: {len(asked)} prompts, stages {', '.join(found)}")


def _draw(
    generator: Any, asked: list[Any], number: int, rerank: int | None, out: Path, how: dict[str, Any]
) -> None:  # fmt: skip
    """Draw `number` pictures of each prompt."""
    from zoo.data.images import save_grid

    with _progress(generator, len(asked) * (rerank or number)) as progress:
        images = generator.generate(asked, images_per_prompt=number, rerank=rerank, progress=progress, **how)
    captions = [str(p) if p is not None else "" for p in asked for _ in range(number)]
    save_grid(out, images, captions, columns=number)
    click.echo(
        f"{out}: {len(images)} pictures, {number} a row, best first" if rerank else f"{out}: {len(images)} pictures"
    )


def _complete(
    generator: Any, paths: str, asked: list[Any], number: int, keep: float, out: Path, how: dict[str, Any]
) -> None:  # fmt: skip
    """Continue the pictures `number` times each."""
    from zoo import completion
    from zoo.data.images import save_grid

    completion.check(generator)
    size = generator.config.image_size
    given = completion.read([paths] if Path(paths).is_file() else [path.strip() for path in paths.split(",")], size)
    for note in filter(None, given.notes):
        click.echo(note)
    with _progress(generator, len(given.images) * number) as progress:
        done = completion.complete(generator, given.images, number, keep=keep, prompts=asked, progress=progress, **how)
    images, captions = completion.in_rows(done, given.images)
    save_grid(out, images, captions, columns=number + 2, title=f"the upper {done.rows} of {size} rows are given")
    click.echo(
        f"{out}: {len(given.images)} pictures, the upper {done.rows} of {size} rows given, {number} continuations"
    )


@contextmanager
def _progress(generator: Any, pictures: int) -> Iterator[Any]:
    """Show a bar of the system's units of work; yield what `generate` tells."""
    from zoo.front import bar

    units, unit = generator.work
    with bar(pictures * units, "sampling", unit) as progress:

        def told(done: int, total: int) -> None:
            progress.total = total  # the settings at hand may be others than the system's own
            progress.update(done - progress.n)

        yield told


def as_prompts(generator: Any, prompts: tuple[str, ...]) -> list[Any]:
    """Return command-line prompts as the generator takes them: integers for one that reads labels."""
    if not prompts:
        return [None]
    if generator.asks == "label":
        return [int(p) if p.lstrip("-").isdigit() else p for p in prompts]
    return list(prompts)

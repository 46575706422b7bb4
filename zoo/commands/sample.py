"""`zoo sample`: pictures from a trained run, as a captioned grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from zoo import registry
from zoo.errors import BadRun, PartMismatch
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
@click.option("--guidance", type=click.FloatRange(0), help="Classifier-free guidance.")
@click.option("--chunk", type=click.IntRange(1), default=128, show_default=True, help="Candidates drawn at a time.")
@click.option(
    "--compile",
    "compiled",
    is_flag=True,
    help="Compile the sampling step; takes seconds once. Measure: on a CPU the plain step is often as fast.",
)
def sample(
    run: str, prompts: tuple[str, ...], number: int, rerank: int | None, seed: int, out: Path, chunk: int,
    compiled: bool, **how: Any,
) -> None:  # fmt: skip
    """Draw pictures of each PROMPT from the run folder RUN and write a captioned PNG grid.

    \b
    zoo sample runs/dalle "a red circle above a blue square" -n 8 --rerank 64 --seed 0 --out grid.png

    Without a PROMPT pictures are unconditional; a model that reads labels takes integers.
    """
    from zoo.data.images import save_grid
    from zoo.front import bar

    if not is_run(run):
        raise BadRun(f"'{run}' is not a run folder (no run.toml); train one: python scripts/train.py --model dalle")
    generator = registry.load(run)
    if not hasattr(generator, "generate"):
        raise PartMismatch(f"'{run}' trained a {generator.card} alone; a whole system is needed to sample")
    asked = as_prompts(generator, prompts)
    if compiled:
        generator.compile_sampling()
    codes = sum(h * w for h, w in generator.grids)
    with bar(len(asked) * (rerank or number) * codes, "sampling", "code") as progress:
        images = generator.generate(
            asked,
            images_per_prompt=number,
            rerank=rerank,
            seed=seed,
            chunk=chunk,
            progress=lambda done, total: progress.update(done - progress.n),
            **how,
        )
    captions = [str(p) if p is not None else "" for p in asked for _ in range(number)]
    save_grid(out, images, captions, columns=number)
    click.echo(
        f"{out}: {len(images)} pictures, {number} a row, best first" if rerank else f"{out}: {len(images)} pictures"
    )


def as_prompts(generator: Any, prompts: tuple[str, ...]) -> list[Any]:
    """Return command-line prompts as the generator takes them: integers for one that reads labels."""
    if not prompts:
        return [None]
    if generator.reads_what == "label":
        return [int(p) if p.lstrip("-").isdigit() else p for p in prompts]
    return list(prompts)

"""Obedience by kind of caption of `shapes`: one object, small or large and by its shape; two, above or left of."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from zoo.data.drawing import SHAPES
from zoo.data.shapes import ABOVE, ONE, SIZES, parse

Kinds = Mapping[str, Mapping[str, Sequence[int]]]
"""Kind of caption -> "all" and, of one object, its shape -> (obeyed, asked). What was not asked for is left out."""

KINDS = (*(f"one {size}" for size in SIZES), "above", "left of")
"""In the order of reports."""
ALL = "all"


def by_kind(captions: Iterable[str], verdicts: Iterable[bool]) -> Kinds:
    """Count captions that were obeyed, and asked, by what they ask for.

    Args:
        captions: of `shapes`.
        verdicts: whether the picture of each obeys it.

    Raises:
        BadData: a caption is not one of `shapes`.
        ValueError: there are not as many of both.
    """
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for caption, good in zip(captions, verdicts, strict=True):
        scene = parse(caption)
        columns = [ALL]
        if scene.kind == ONE:
            kind = KINDS[scene.size]
            columns.append(SHAPES[scene.pairs[0] % len(SHAPES)])
        else:
            kind = "above" if scene.kind == ABOVE else "left of"
        for column in columns:
            counts[kind, column][0] += int(good)
            counts[kind, column][1] += 1
    places = {kind: [c for c in (ALL, *SHAPES) if (kind, c) in counts] for kind in KINDS}
    return {kind: {c: tuple(counts[kind, c]) for c in columns} for kind, columns in places.items() if columns}


def table(kinds: Kinds, corner: str) -> list[str]:
    """Return counts as lines to print, a row a kind, a column a shape; `corner` is the first head."""
    shapes = [shape for shape in SHAPES if any(shape in found for found in kinds.values())]
    rows = [[kind, *(share(found.get(c)) for c in (ALL, *shapes))] for kind, found in kinds.items()]
    return aligned([[corner, ALL, *shapes], *rows])


def row(kinds: Kinds) -> dict[str, str]:
    """Return counts as one row of a table, by the heads of its columns: the kinds, and shapes of one object."""
    text = {kind: share(found[ALL]) for kind, found in kinds.items()}
    for shape in SHAPES:
        pairs = [found[shape] for found in kinds.values() if shape in found]
        if pairs:
            text[shape] = share([sum(some) for some in zip(*pairs, strict=True)])
    return text


HEADS = (*KINDS, *SHAPES)
"""Of the columns of `row`."""


def share(pair: Sequence[int] | None) -> str:
    """Return (obeyed, asked) as text, "" where nothing was asked."""
    return "" if pair is None else f"{pair[0]}/{pair[1]}"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as lines whose columns stand below each other; rows may be shorter than the first."""
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    return ["  ".join(x.ljust(n) for x, n in zip(row, widths, strict=False)).rstrip() for row in rows]

"""Pictures of probes: accuracy over layers, over labels, over validation loss; and objectives side by side.

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020, figures 2, 3 and 4, table 4.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.files import atomic_bytes

Report = Mapping[str, Any]


def _figure(width: float = 6.4) -> tuple[Any, Any]:
    """Return a figure and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=110)
    atomic_bytes(path, written.getvalue())


def _percent(axes: Any, which: str = "accuracy") -> None:
    from matplotlib.ticker import PercentFormatter

    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
    axes.set_ylabel(which, fontsize=9)


def name_of(report: Report) -> str:
    """Return what a run is called in a legend."""
    return f"{Path(report['run']).name} ({report['card']})"


def over_layers(reports: Sequence[Report], path: Path) -> None:
    """Draw accuracy over layers, a line a run; the layer that validation chose has a ring. [1] figure 2"""
    figure, axes = _figure()
    for report in reports:
        rows = report["layers"]
        x = [row["layer"] for row in rows]
        label = name_of(report)
        (line,) = axes.plot(x, [row["accuracy"] for row in rows], marker="o", markersize=4, label=label)
        best = report["best"]
        axes.plot(best["layer"], best["accuracy"], "o", markersize=11, fillstyle="none", color=line.get_color())
        if "votes" in best:
            votes = [row["votes"] for row in rows]
            axes.plot(x, votes, marker=".", linestyle="--", color=line.get_color(), label=f"{label}, masks vote")
    most = max(report["most_common"] for report in reports)
    axes.axhline(most, color="grey", linewidth=0.9, linestyle=":", label="the most common class")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layer (0: before the first block; the last: after the final norm)", fontsize=9)
    _percent(axes, "test accuracy of a linear probe")
    axes.set_title(f"{_data(reports)}; rings: chosen by validation", fontsize=10)
    axes.legend(fontsize=8)
    _save(figure, path)


def over_labels(reports: Sequence[Report], path: Path) -> None:
    """Draw accuracy over labels a class, with the spread of its draws. [1] table 4"""
    figure, axes = _figure()
    for report in reports:
        rows = report["labels_per_class"]
        x = [row["labels"] for row in rows]
        mean, spread = [row["mean"] for row in rows], [row["spread"] for row in rows]
        bars = axes.errorbar(x, mean, yerr=spread, marker="o", markersize=4, capsize=3, label=name_of(report))
        colour = bars.lines[0].get_color()
        axes.axhline(report["best"]["accuracy"], color=colour, linestyle="--", linewidth=0.9)
    axes.set_xscale("log")
    ticks = sorted({row["labels"] for report in reports for row in report["labels_per_class"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labels a class", fontsize=9)
    _percent(axes, "test accuracy of the best layer's probe")
    axes.set_title(f"{_data(reports)}; bars: standard deviation over draws; dashed: all labels", fontsize=10)
    axes.legend(fontsize=8)
    _save(figure, path)


def over_loss(reports: Sequence[Report], path: Path) -> None:
    """Draw the probe's accuracy against validation loss, a line a run, a point a checkpoint. [1] figure 3"""
    figure, axes = _figure()
    for report in reports:
        rows = sorted(report["checkpoints"], key=lambda row: row["step"])
        losses, shares = [row["loss"] for row in rows], [row["accuracy"] for row in rows]
        axes.plot(losses, shares, marker="o", markersize=4, label=name_of(report))
        for row in (rows[0], rows[-1]):
            place = (row["loss"], row["accuracy"])
            axes.annotate(f"step {row['step']}", place, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.margins(x=0.12)
    axes.invert_xaxis()  # a better model is to the right, as in [1]
    mixed = len({report["objective"] for report in reports}) > 1
    what = "nats a code; of the masked runs, a masked one: not to be compared" if mixed else "nats a code"
    axes.set_xlabel(f"validation loss, {what} (better to the right)", fontsize=9)
    _percent(axes, "test accuracy of the best layer's probe")
    axes.set_title(_data(reports), fontsize=10)
    axes.legend(fontsize=8)
    _save(figure, path)


def compared(table: Sequence[Mapping[str, Any]], path: Path, data: str) -> None:
    """Draw bars: each objective under probe and fine-tuning. [1] figure 4

    Args:
        table: rows of `zoo.probing.results.compare`: "name", "probe", "finetune"; None where there is no result.
        path: the PNG.
        data: what was classified.
    """
    figure, axes = _figure(max(6.4, 2.2 * len(table)))
    width = 0.38
    for place, (kind, colour) in enumerate((("probe", "tab:blue"), ("finetune", "tab:orange"))):
        at = [(i, row[kind]) for i, row in enumerate(table) if row[kind] is not None]
        label = {"probe": "linear probe, best layer", "finetune": "fine-tuned"}[kind]
        bars = axes.bar(
            [i + (place - 0.5) * width for i, _ in at], [x for _, x in at], width, color=colour, label=label
        )
        axes.bar_label(bars, [f"{x:.1%}" for _, x in at], fontsize=8)
    values = [row[kind] for row in table for kind in ("probe", "finetune") if row[kind] is not None]
    low = min(values)
    axes.set_ylim(max(0.0, low - 0.25 * (1 - low) - 0.02), min(1.0, max(values) * 1.04) + 0.02)
    axes.set_xticks(range(len(table)), [row["name"] for row in table], fontsize=8)
    _percent(axes, "test accuracy")
    axes.set_title(f"{data} (the axis does not begin at 0)" if axes.get_ylim()[0] > 0 else data, fontsize=10)
    axes.legend(fontsize=8)
    _save(figure, path)


def _data(reports: Sequence[Report]) -> str:
    """Return what was classified, for a title."""
    names = dict.fromkeys(report["data"] for report in reports)
    return ", ".join(name if len(name) <= 40 else f"{name[:18]}...{name[-18:]}" for name in names)

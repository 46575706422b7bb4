"""Pictures of a report: quality over candidates, over blur and over guidance. One panel a measure.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding.
    arXiv:2205.11487
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.files import atomic_bytes

_COLOURS = ("tab:blue", "tab:orange", "tab:green")
REAL = "dashed: the captions' own pictures in their place"
_STYLES = ("-", "--", ":")
"""Of splits, where colours tell runs apart."""
_SPREAD = 1.0
"""Standard errors on either side of a share, drawn as a band."""


def best_of(report: Mapping[str, Any], path: Path) -> None:
    """Draw each measure against the number of candidates, on a logarithmic axis."""
    distance = report.get("distance", {})
    panels = _panels(report, path)
    for split, place, colour in _splits(report):
        for name, axes in panels.axes.items():
            found = (report["accuracy"] if name == "accuracy" else distance).get(split, {})
            values = found if name == "accuracy" else found.get(name, {})
            counts = sorted(int(k.removeprefix("best_of_")) for k in values if k.startswith("best_of_"))
            y = [values[f"best_of_{k}"] for k in counts]
            axes.plot(counts, y, marker="o", markersize=4, color=colour, label=split)
            if name == "accuracy":
                _band(axes, counts, y, report["accuracy"]["captions"][split], colour)
            elif "real" in values:
                axes.axhline(values["real"], color=colour, linestyle=(place, (4, 4)), linewidth=0.9)
            axes.set_xscale("log", base=2)
            axes.set_xticks(counts, [str(k) for k in counts])
            axes.set_xlabel("candidates that the reranker chose among", fontsize=9)
    panels.save("Best of N by the reranker", REAL)


def blurred(report: Mapping[str, Any], path: Path) -> None:
    """Draw each measure against the radius with which generated and real pictures were blurred."""
    from matplotlib import ticker

    blur = report["blur"]
    panels = _panels(report, path)
    for split, place, colour in _splits(report):
        for name, axes in panels.axes.items():
            values = blur.get(split, {}).get(name, {})
            for kind, style in (("generated", "-"), ("real", (place, (4, 4)))):
                y = values.get(kind)
                if y is not None:
                    axes.plot(
                        blur["radii"], y, marker="o", markersize=4, color=colour, linestyle=style,
                        linewidth=1.5 if kind == "generated" else 0.9, label=split if kind == "generated" else None,
                    )  # fmt: skip
            if name != "accuracy":
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter("{x:g}")
            axes.set_xticks(blur["radii"], [f"{r:g}" for r in blur["radii"]])
            axes.set_xlabel("blur radius, pixels", fontsize=9)
    k = blur["best_of"]
    what = f"best of {k} by the reranker" if k > 1 else "single samples"
    panels.save(f"Generated pictures ({what}) and real ones, blurred alike", REAL)


def swept(report: Mapping[str, Any], path: Path) -> None:
    """Draw caption accuracy against guidance, and against distance, a line a run and way of sampling. [1] figure 4

    Bars are 95% intervals, points are labelled with their guidance. Without accuracy: distance against guidance.
    """
    rows = report["rows"]
    judged = any("accuracy" in row for row in rows)
    far = f"Fréchet distance ({report['feature']})"
    over = "over guidance", "caption accuracy" if judged else far
    panels = _Figure({"guidance": over, **({"distance": ("against distance", over[1])} if judged else {})}, path)
    lines: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["name"], row["how"], row["split"]), []).append(row)
    colours = {name: f"C{i % 10}" for i, name in enumerate(dict.fromkeys((run, how) for run, how, _ in lines))}
    for (run, how, split), points in lines.items():
        style: dict[str, Any] = {
            "label": ", ".join(
                (run, *([] if how == "own" else [how]), *([split] if len(report["splits"]) > 1 else []))
            ),
            "color": colours[run, how],
            "marker": "o",
            "markersize": 4,
            "linestyle": _STYLES[report["splits"].index(split) % len(_STYLES)],
        }
        _swept(panels.axes, sorted(points, key=lambda row: row["guided"]), judged, style)
    panels.axes["guidance"].set_xlabel("guidance (of the first stage)", fontsize=9)
    if judged:
        panels.axes["distance"].set_xlabel(f"{far}: better to the left", fontsize=9)
    captions = sorted({row["captions"] for row in rows})
    note = "bars: 95% intervals; points: guidance" if judged else "points: guidance"
    stage = "" if report["stage"] is None else f", stage {report['stage']}"
    panels.save(
        f"{' or '.join(map(str, captions))} captions of {' and '.join(report['splits'])}{stage}", note, below=len(lines)
    )


def _swept(axes: Mapping[str, Any], points: Sequence[Mapping[str, Any]], judged: bool, style: dict[str, Any]) -> None:
    """Draw one line in each panel."""
    if not judged:
        there = [row for row in points if row["distance"] is not None]
        axes["guidance"].plot([row["guided"] for row in there], [row["distance"] for row in there], **style)
        return
    points = [row for row in points if "accuracy" in row]
    y = [row["accuracy"] for row in points]
    ends = [[abs(row["interval"][end] - row["accuracy"]) for row in points] for end in (0, 1)]
    axes["guidance"].errorbar([row["guided"] for row in points], y, yerr=ends, capsize=2, elinewidth=0.8, **style)
    there = [row for row in points if row["distance"] is not None]
    axes["distance"].plot([row["distance"] for row in there], [row["accuracy"] for row in there], **style)
    for row in there:
        place = row["distance"], row["accuracy"]
        axes["distance"].annotate(
            f"{row['guided']:g}", place, xytext=(4, 4), textcoords="offset points", fontsize=7, color=style["color"]
        )


class _Figure:
    """Panels side by side.

    Args:
        panels: name of a measure -> (title, what its axis says).
        path: the PNG.
    """

    def __init__(self, panels: Mapping[str, tuple[str, str]], path: Path) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.path = path
        self.figure = Figure(figsize=(4.6 * len(panels), 4.0), layout="constrained")
        FigureCanvasAgg(self.figure)
        self.axes: dict[str, Any] = {}
        for place, (name, (title, axis)) in enumerate(panels.items()):
            axes = self.figure.add_subplot(1, len(panels), place + 1)
            axes.set_title(title, fontsize=9)
            axes.set_ylabel(axis, fontsize=9)
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.3)
            self.axes[name] = axes

    def save(self, title: str, note: str, below: int = 0) -> None:
        """Write the picture, whole or not at all; `below`: lines of the one legend, under the panels."""
        for axes in self.axes.values():
            axes.minorticks_off()
            if not below:
                axes.legend(fontsize=8)
        if below:
            handles, labels = next(iter(self.axes.values())).get_legend_handles_labels()
            columns = len(self.axes)
            self.figure.set_figheight(self.figure.get_figheight() + 0.2 * math.ceil(below / columns))
            self.figure.legend(handles, labels, loc="outside lower center", ncols=columns, fontsize=8)
        self.figure.suptitle(f"{title}\n{note}", fontsize=10)
        written = io.BytesIO()
        self.figure.savefig(written, format="png", dpi=110)
        atomic_bytes(self.path, written.getvalue())


def _panels(report: Mapping[str, Any], path: Path) -> _Figure:
    """Return a panel for each measure of the report."""
    panels = {}
    if "accuracy" in report:
        counts = sorted(set(report["accuracy"]["captions"].values()))
        panels["accuracy"] = (f"{' and '.join(map(str, counts))} captions a split", "caption accuracy")
    for name, about in report.get("distance", {}).get("features", {}).items():
        panels[name] = (f"{about}\n{_numbers(report)}", f"Fréchet distance ({name})")
    return _Figure(panels, path)


def _numbers(report: Mapping[str, Any]) -> str:
    """Return how many pictures are compared with how many."""
    pairs = {f"{n['generated']} generated to {n['real']} real" for n in report["distance"]["pictures"].values()}
    return ", ".join(sorted(pairs))


def _splits(report: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Return (split, offset of its dashes, colour), so that two dashed lines in one place are both seen."""
    names = report["splits"]
    return [(name, 4 * i, _COLOURS[i % len(_COLOURS)]) for i, name in enumerate(names)]


def _band(axes: Any, x: Sequence[float], shares: Sequence[float], count: int, colour: str) -> None:
    errors = [_SPREAD * math.sqrt(p * (1 - p) / count) for p in shares]
    low = [p - e for p, e in zip(shares, errors, strict=True)]
    high = [p + e for p, e in zip(shares, errors, strict=True)]
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)

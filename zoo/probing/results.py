"""Where results of probes and fine-tuning lie in a run, and one table of several runs'. [1] figure 4

    RUN/probe/DATA/probe.json        layers.png, labels.png, checkpoints.json, features-*.safetensors
    RUN/finetune/DATA/finetune.json  the run that fine-tuning has made: see `zoo.probing.finetune`

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import BadRun, ConfigError
from zoo.files import atomic_text

PROBE, FINETUNE, CHECKPOINTS = "probe.json", "finetune.json", "checkpoints.json"


def slug(uri: str) -> str:
    """Return a folder's name for a dataset: "shapes", "folder-pets", "shapes-n-5000-objects-1"."""
    name, _, path = uri.partition(":")
    last = Path(path).expanduser().name if "/" in path else path
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{name} {last}").strip("-").lower()


def place(run: str | Path, kind: str, uri: str) -> Path:
    """Return the folder of a run's results on a dataset; `kind` is "probe" or "finetune"."""
    return Path(run) / kind / slug(uri)


def write(report: Mapping[str, Any], path: Path) -> None:
    """Write a report as JSON."""
    atomic_text(path, json.dumps(report, indent=1) + "\n")


def read(path: Path) -> dict[str, Any] | None:
    """Return a report, or None where there is none.

    Raises:
        BadRun: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadRun(f"{path} cannot be read ({error}); make it anew") from error


def compare(runs: Sequence[str], uri: str) -> list[dict[str, Any]]:
    """Return a row for each run, and one more for the vote of masks where a run has it.

    A row: "name", "run", "objective", and the test accuracies "probe" and "finetune", None where there is no result.

    Raises:
        ConfigError: no run has a result; says what to type.
    """
    rows = []
    for run in runs:
        probed = read(place(run, "probe", uri) / PROBE)
        tuned = read(place(run, "finetune", uri) / FINETUNE)
        if probed is None and tuned is None:
            raise ConfigError(
                f"'{run}' has no results on '{uri}' yet; type: zoo probe {run} --data {uri}, and then: "
                f"zoo finetune {run} --data {uri}"
            )
        said: Mapping[str, Any] = probed or tuned or {}
        best = (probed or {}).get("best", {})
        test = (tuned or {}).get("after", {}).get("test", {})
        row = {"run": str(run), "card": said["card"], "objective": said["objective"]}
        short = {"autoregressive": "AR", "masked": "BERT"}[said["objective"]]
        name = f"{short}\n{Path(run).name}"
        rows.append({"name": name, **row, "probe": best.get("accuracy"), "finetune": test.get("accuracy")})
        if "votes" in best or "votes" in test:
            name = f"{short}, masks vote\n{Path(run).name}"
            rows.append({"name": name, **row, "probe": best.get("votes"), "finetune": test.get("votes")})
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rows of `compare` as lines to print."""
    names = [row["name"].replace("\n", ", ") for row in rows]
    width = max(map(len, names))
    text = [f"{'':<{width}} {'probe':>8} {'fine-tuned':>11}"]
    for name, row in zip(names, rows, strict=True):
        probe, tuned = ("-" if x is None else f"{x:.1%}" for x in (row["probe"], row["finetune"]))
        text.append(f"{name:<{width}} {probe:>8} {tuned:>11}")
    return text

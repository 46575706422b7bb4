"""Where results of probes and fine-tuning lie in a run, and one table of several runs'. [1] figure 4

DATA is the dataset's name and options, or the last of its path and a hash of the whole path.

    RUN/probe/DATA/probe.json        layers.png, labels.png, checkpoints.json, features-*.safetensors
    RUN/finetune/DATA/finetune.json  the run that fine-tuning has made: see `zoo.probing.finetune`

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo.errors import BadRun, ConfigError
from zoo.files import atomic_text

PROBE, FINETUNE, CHECKPOINTS = "probe.json", "finetune.json", "checkpoints.json"


def _folder(path: str) -> Path | None:
    """Return what follows "name:" as a whole path, None where it is no path but options."""
    where = Path(path).expanduser()
    return where.resolve() if path and (len(where.parts) > 1 or where.is_dir()) else None


def whole(uri: str) -> str:
    """Return a dataset's name with the whole of its path: the same from wherever it is typed."""
    name, _, path = uri.partition(":")
    where = _folder(path)
    return uri if where is None else f"{name}:{where}"


def slug(uri: str) -> str:
    """Return a folder's name for a dataset: "shapes", "shapes-n-5000-objects-1", "folder-pets-1f0c2a7b"."""
    name, _, path = uri.partition(":")
    where = _folder(path)
    if where is not None:
        path = f"{where.name} {hashlib.sha256(str(where).encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
    return re.sub(r"[^A-Za-z0-9]+", "-", f"{name} {path}").strip("-").lower()


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
        ConfigError: a run has no result; says what to type.
        BadRun: a result is of other data, or judged on other pictures than the first.
    """
    rows, judged = [], {}
    for run in runs:
        paths = place(run, "probe", uri) / PROBE, place(run, "finetune", uri) / FINETUNE
        probed, tuned = map(read, paths)
        if probed is None and tuned is None:
            raise ConfigError(
                f"'{run}' has no results on '{uri}' yet; type: zoo probe {run} --data {uri}, and then: "
                f"zoo finetune {run} --data {uri}"
            )
        for path, report in zip(paths, (probed, tuned), strict=True):
            if report is not None:
                judged[path] = _judged_on(report, uri, path)
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
    _same(judged)
    return rows


def _judged_on(report: Mapping[str, Any], uri: str, path: Path) -> str:
    """Return the test pictures of a report: of one dataset, split and number tell them, the order being fixed."""
    if whole(report["data"]) != whole(uri):
        raise BadRun(f"{path} is of '{report['data']}', not of '{uri}'; make it anew")
    return f"{report['pictures']['test']} pictures of {report['test']}"


def _same(judged: Mapping[Path, str]) -> None:
    """Refuse reports that are judged on different pictures."""
    (first, said), *others = judged.items()
    for path, other in others:
        if other != said:
            raise BadRun(f"{path} was judged on {other}, {first} on {said}; make one anew with the other's --pictures")


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the rows of `compare` as lines to print."""
    names = [row["name"].replace("\n", ", ") for row in rows]
    width = max(map(len, names))
    text = [f"{'':<{width}} {'probe':>8} {'fine-tuned':>11}"]
    for name, row in zip(names, rows, strict=True):
        probe, tuned = ("-" if x is None else f"{x:.1%}" for x in (row["probe"], row["finetune"]))
        text.append(f"{name:<{width}} {probe:>8} {tuned:>11}")
    return text

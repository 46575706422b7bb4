"""What a run writes about itself."""

import json
import math

from zoo.train.metrics import Metrics, draw_curves, read_rows


def written(folder, part, steps, start=0):
    metrics = Metrics(folder, part, start)
    for step in steps:
        metrics.write(step, {"loss": 1 / step, "seconds": 0.1, "lr": 0.5})
    metrics.close()


def test_one_object_a_step_with_the_promised_fields(tmp_path):
    written(tmp_path, "prior", [1, 2])
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [
        {"part": "prior", "step": 1, "loss": 1.0, "seconds": 0.1, "lr": 0.5},
        {"part": "prior", "step": 2, "loss": 0.5, "seconds": 0.1, "lr": 0.5},
    ]


def test_rows_beyond_the_checkpoint_are_dropped_on_resume(tmp_path):
    written(tmp_path, "codebook", [1, 2, 3])
    written(tmp_path, "prior", [1, 2, 3, 4])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"part": "prior", "step": 5, "lo')  # killed inside a line
    written(tmp_path, "prior", [3, 4, 5], start=2)
    rows = [(row["part"], row["step"]) for row in read_rows(tmp_path / "metrics.jsonl")]
    assert rows == [("codebook", s) for s in (1, 2, 3)] + [("prior", s) for s in (1, 2, 3, 4, 5)]


def test_a_row_is_on_the_disk_at_once(tmp_path):
    metrics = Metrics(tmp_path, "prior", 0)
    metrics.write(1, {"loss": 1.0})
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 1
    metrics.close()


def test_what_is_not_finite_is_null_and_the_file_stays_json(tmp_path):
    metrics = Metrics(tmp_path, "prior", 0)
    row = metrics.write(1, {"loss": math.nan, "grad_norm": math.inf})
    metrics.close()
    assert row == {"part": "prior", "step": 1, "loss": None, "grad_norm": None}
    assert json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=lambda x: 1 / 0) == row


def test_curves_are_a_picture_of_each_part(tmp_path):
    written(tmp_path, "prior", range(1, 20))
    path = draw_curves(tmp_path, "prior")
    assert path.name == "curves-prior.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert draw_curves(tmp_path, "codebook") is None
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["curves-prior.png", "metrics.jsonl"]

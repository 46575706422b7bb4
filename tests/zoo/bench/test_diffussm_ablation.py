"""The ablation trains each case once, in one latent, and keeps what it saw."""

from zoo import front
from zoo.bench import diffussm_ablation as bench
from zoo.train.options import TrainOptions
from zoo.train.run import run

DATA = "shapes:objects=1,n=64"
SMALL = ("image_size=32", "base_size=32", "base.reads=label", "tokenizer=none", "text_encoder=none")
"""32 px, which the judge needs."""


def latent_of(work):
    out = work / "latent"
    if not out.exists():
        said = (*SMALL, "latent.image_size=32")
        run(TrainOptions(model="diffussm-tiny", part="latent", data=DATA, out=out, set=said, steps=2, sample_every=0))
    return out


def test_a_table_of_two_cases(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "DATA", DATA)
    monkeypatch.setattr(bench, "latent_of", latent_of)
    cases = {"M = 2": ("diffussm-tiny", SMALL), "one direction": ("diffussm-tiny", (*SMALL, "base.directions=forward"))}
    monkeypatch.setattr(bench, "CASES", cases)
    asked = ["--work", str(tmp_path), "--steps", "2", "--captions", "4", "--threads", "1"]

    def table():
        assert front.run(bench.ablation, "diffussm_ablation", asked) == 0
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("| M") or "direction" in line]

    first = table()
    assert len(first) == 2
    assert 'directions = "forward"' in (tmp_path / "one-direction" / "run.toml").read_text()
    assert 'directions = "forward"' not in (tmp_path / "m2" / "run.toml").read_text()
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert table() == first
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}

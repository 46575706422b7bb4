"""A system that is asked by label is judged by label, and its pictures are shown."""

import json

from PIL import Image

from zoo.cli import main
from zoo.train.options import TrainOptions
from zoo.train.run import run as train

DATA = "shapes:objects=1,n=64"


def test_pictures_asked_by_label(tmp_path, capsys):
    out = tmp_path / "run"
    said = (
        "image_size=32",
        "base_size=32",
        "latent.image_size=32",
        "base.reads=label",
        "tokenizer=none",
        "text_encoder=none",
    )
    train(TrainOptions(model="diffussm-tiny", data=DATA, set=said, out=out, steps=2, sample_every=0))
    assert main(["evaluate", str(out), "--captions", "8", "--split", "validation"]) == 0
    report = json.loads((out / "evaluation.json").read_text())
    marked = Image.open(next(out.rglob("*validation*.png"))).info
    missed = round(8 * (1 - report["accuracy"]["validation"]["best_of_1"]))
    assert sum(str(value).count("MISSED") for value in marked.values()) == missed

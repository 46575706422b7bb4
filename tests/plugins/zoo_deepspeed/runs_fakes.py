"""Training commands as the tests give them, and what they leave."""

import random
import shutil
from pathlib import Path

from PIL import Image

from zoo.train.metrics import read_rows
from zoo.weights import load_tensors

MODEL = "dalle-tiny"
WORDS = [
    "a",
    "red",
    "circle",
    "above",
    "the",
    "small",
    "blue",
    "square",
    "left",
    "of",
    "some",
    "green",
    "triangle",
    "on",
    "grey",
    "paper",
]


def captioned(folder: Path, count: int = 24) -> str:
    """Pictures whose captions have one word or as many as there is room for."""
    folder.mkdir()
    draw = random.Random(3)
    for i in range(count):
        Image.effect_noise((32, 32), 40 + i).convert("RGB").save(folder / f"{i:02}.png")
        words = draw.sample(WORDS, 1 if i % 3 else 12)
        (folder / f"{i:02}.txt").write_text(" ".join(words))
    return f"folder:{folder}"


def command(data: str, out: Path, part: str, **changes) -> dict:
    """One training command, as `TrainOptions` has it."""
    said = {"model": MODEL, "data": data, "out": str(out), "part": part, "steps": 8, "batch": 8, "sample_every": 0}
    return {**said, **changes}


def rows(folder: Path, part: str) -> list[dict]:
    return [row for row in read_rows(folder / "metrics.jsonl") if row["part"] == part]


def numbers(folder: Path, part: str, name: str = "loss") -> list[float]:
    return [row[name] for row in rows(folder, part)]


def weights(folder: Path, role: str):
    return load_tensors(folder / f"{role}.safetensors")[0]


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to

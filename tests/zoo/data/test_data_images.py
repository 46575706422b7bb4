import errno
import json

import pytest
import torch
from PIL import Image

from zoo import files
from zoo.data import images
from zoo.data.images import save_grid


def test_one_caption_a_picture(tmp_path):
    pictures = torch.rand(5, 3, 32, 32)
    path = tmp_path / "new" / "grid.png"
    save_grid(path, pictures, [f"picture {i}" for i in range(5)], columns=3, title="five", metadata={"Run": "한국어"})
    page = Image.open(path)
    assert page.width == 8 + 3 * 104
    assert json.loads(page.text["captions"])[4] == "picture 4"
    assert page.text["Run"] == "한국어"
    assert page.text["Title"] == "five"


def test_pixels_are_shown_as_they_are(tmp_path):
    pictures = torch.zeros(2, 3, 32, 32)
    pictures[1, 0] = 1
    save_grid(tmp_path / "g.png", pictures, ["black", "red"])
    colours = Image.open(tmp_path / "g.png").getcolors(1 << 16)
    counts = {colour: n for n, colour in colours}
    assert counts[(255, 0, 0)] == 96 * 96
    assert counts[(0, 0, 0)] >= 96 * 96


def test_one_caption_a_group(tmp_path):
    save_grid(tmp_path / "g.png", torch.rand(24, 3, 100, 100), ["a", "b"])
    page = Image.open(tmp_path / "g.png")
    assert page.width == 8 + 8 * 108  # eight in a line, so twelve take two
    assert page.height > 4 * 108


@pytest.mark.parametrize(
    "caption", ["", "빨간 하트 ❤️ 😀", "\ud800", "a\x00b\nc", "x" * 5000, "word " * 900, "\u202eevil"]
)
def test_any_caption(tmp_path, caption):
    save_grid(tmp_path / "g.png", torch.rand(1, 3, 16, 16), [caption], title=caption, metadata={"Attribution": caption})
    assert Image.open(tmp_path / "g.png").height < 1000


def test_bitmap_font_copes(tmp_path, monkeypatch):
    from PIL import ImageFont

    monkeypatch.setattr(images, "_font", lambda size=13: ImageFont.load_default_imagefont())
    save_grid(tmp_path / "g.png", torch.rand(1, 3, 16, 16), ["빨간 하트 ❤️"])


def test_values_out_of_range(tmp_path):
    pictures = torch.tensor([float("nan"), float("inf"), -3.0]).view(1, 3, 1, 1).expand(1, 3, 96, 96)
    save_grid(tmp_path / "g.png", pictures, ["odd"])
    assert {c: n for n, c in Image.open(tmp_path / "g.png").getcolors(1 << 16)}[(0, 255, 0)] == 96 * 96


def test_captions_must_divide(tmp_path):
    with pytest.raises(ValueError, match="2 captions"):
        save_grid(tmp_path / "g.png", torch.rand(3, 3, 8, 8), ["a", "b"])
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        save_grid(path, torch.rand(1, 3, 8, 8), ["new"])
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]

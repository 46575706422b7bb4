import json
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data import folder
from zoo.data.folder import hashed_validation, open_folder
from zoo.errors import BadData, NoSplit
from zoo.rng import Rng

torch.set_num_threads(1)
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def picture(path, colour=RED, size=(40, 40), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **kwargs)


def opened(root, split="train", **kwargs):
    return open_folder(str(root), split=split, **{"size": 16} | kwargs)


def everything(root):
    """Read both splits; return {caption: image}."""
    found = {}
    for split in ("train", "validation"):
        d = opened(root, split)
        b = d.read(range(len(d)))
        found |= dict(zip(b.texts, b.images, strict=True))
    return found


def one(root):
    """The picture of a folder that has one good picture."""
    d = opened(root)
    assert len(d) == 1
    return d.read([0]).images[0]


def png(width, height, kind, depth, rows, chunks=()):
    """Write a PNG by hand."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    body = b"".join(b"\0" + row for row in rows)
    extra = b"".join(chunk(name, data) for name, data in chunks)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    )


def test_captions_from_all_three_places(tmp_path):
    for name in "abcdef":
        picture(tmp_path / f"{name}.png")
    (tmp_path / "a.txt").write_text("from a sidecar\n\n 한국어  캡션 \n", encoding="utf-8")
    (tmp_path / "captions.jsonl").write_text(
        "\ufeff" + json.dumps({"file": "./b.png", "caption": "from json"}) + "\n\n"
        + json.dumps({"file_name": "c.png", "text": "other keys"}) + "\n"
        + json.dumps({"file": "a.png", "caption": "hidden by the sidecar"}) + "\n",
        encoding="utf-8",
    )  # fmt: skip
    (tmp_path / "captions.csv").write_text('caption,file\n"from csv, quoted",d.png\nsecond,d.png\n', encoding="utf-8")
    with pytest.warns(UserWarning, match="have no caption"):
        found = set(everything(tmp_path))
    assert found == {"from a sidecar", "한국어 캡션", "from json", "other keys", "from csv, quoted", "second", ""}


def test_without_captions_texts_are_none(tmp_path):
    for i in range(4):
        picture(tmp_path / f"{i}.jpg")
    d = opened(tmp_path)
    assert d.read([0]).texts is None
    assert d.classes is None
    assert d.read([0]).labels is None
    with pytest.raises(BadData, match="no captions"):
        list(d.texts())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("captions.jsonl", '{"file": "../x.png", "caption": "a"}', "line 1.*leads out"),
        ("captions.jsonl", '{"file": "/etc/x.png", "caption": "a"}', "leads out"),
        ("captions.jsonl", '{"file": "C:\\\\x.png", "caption": "a"}', "leads out"),
        ("captions.jsonl", '\n{"file": "a.png"', "line 2: this is not JSON"),
        ("captions.jsonl", "[1]", "line 1"),
        ("captions.jsonl", '{"file": "a.png"}', "'caption' .or 'text'. is missing"),
        ("captions.jsonl", '{"file": 3, "caption": "a"}', "'file'"),
        ("captions.csv", "name,caption\na.png,x\n", "'file'"),
        ("captions.csv", "file,caption\n..\\x.png,x\n", "line 2.*leads out"),
    ],
)
def test_bad_captions_files(tmp_path, name, content, message):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    (tmp_path / name).write_text(content)
    with pytest.raises(BadData, match=message):
        opened(tmp_path)


def test_captions_that_are_not_utf8(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(BadData, match=r"a\.txt is not UTF-8"):
        opened(tmp_path)


def test_captions_of_missing_pictures_are_named(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("file,caption\na.png,x\nb.png,y\n")
    with pytest.warns(UserWarning, match=r"1 captions name no picture here, the first 'b.png'"):
        opened(tmp_path)


def test_subfolders_are_labels(tmp_path):
    for i in range(20):
        picture(tmp_path / "cats" / "deep" / f"{i}.png", RED)
        picture(tmp_path / "ants" / f"{i}.png", BLUE)
    for split in ("train", "validation"):
        d = opened(tmp_path, split)
        b = d.read(range(len(d)))
        assert d.classes == ("ants", "cats")
        assert torch.equal(b.labels, (b.images[:, 0, 8, 8] > 0.5).long())
    picture(tmp_path / "loose.png")
    assert opened(tmp_path).classes is None


def test_split_subfolders(tmp_path):
    for split, classes in (("train", "ab"), ("heldout", "bc"), ("validation", "a")):
        for name in classes:
            picture(tmp_path / split / name / "x.png")
    (tmp_path / "captions.jsonl").write_text(json.dumps({"file": "heldout/c/x.png", "caption": "from the top"}))
    assert len(opened(tmp_path)) == 2
    assert len(opened(tmp_path, "validation")) == 1
    with pytest.warns(UserWarning, match="no caption"):
        held = opened(tmp_path, "heldout")
    assert held.classes == ("a", "b", "c")
    assert held.labels([1, 0]).tolist() == held.read([1, 0]).labels.tolist()
    assert held.read([0, 1]).labels.tolist() == [1, 2]
    assert list(held.texts()) == ["", "from the top"]


def test_heldout_and_validation_without_train(tmp_path):
    picture(tmp_path / "a.png")
    with pytest.raises(NoSplit, match="subfolder 'heldout'"):
        opened(tmp_path, "heldout")
    picture(tmp_path / "heldout" / "a.png")
    with pytest.raises(BadData, match="none named 'train'"):
        opened(tmp_path)
    picture(tmp_path / "train" / "a.png")
    picture(tmp_path / "train" / "b.png")
    assert len(opened(tmp_path)) == len(opened(tmp_path, "validation")) == 1  # by hash within train


def test_hash_split():
    files = [f"d/{i}.{end}" for i in range(2000) for end in ("jpg", "png")]
    chosen = hashed_validation(files)
    assert 0.035 < len(chosen) / len(files) < 0.065
    assert {f[:-4] for f in chosen}.isdisjoint(f[:-4] for f in files if f not in chosen)
    assert hashed_validation(files[:2000]) == chosen & set(files[:2000])  # more pictures move none
    assert [len(hashed_validation([f"{i}.png" for i in range(n)])) for n in (0, 1, 2, 3)] == [0, 0, 1, 1]


def test_one_picture_has_no_validation(tmp_path):
    picture(tmp_path / "a.png")
    assert len(opened(tmp_path)) == 1
    with pytest.raises(BadData, match="too few pictures for a validation split"):
        opened(tmp_path, "validation")


def test_exif_orientation(tmp_path):
    halves = Image.new("RGB", (40, 40), RED)
    halves.paste(BLUE, (0, 0, 20, 40))  # blue on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right to see it upright: blue comes up
    halves.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = one(tmp_path)
    assert image[2, 1, 8] > 0.9
    assert image[0, 14, 8] > 0.9


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB", "L"])
def test_transparency_is_white(tmp_path, mode):
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 20, 40))
    if mode == "P":
        palette = Image.new("P", (40, 40), 1)
        palette.putpalette([0, 0, 0, 9, 9, 9])
        palette.paste(0, (0, 0, 20, 40))
        palette.save(tmp_path / "a.png", transparency=1)
    elif mode in ("RGB", "L"):
        plain = Image.new(mode, (40, 40), (9, 9, 9) if mode == "RGB" else 9)
        plain.paste((0, 0, 0) if mode == "RGB" else 0, (0, 0, 20, 40))
        plain.save(tmp_path / "a.png", transparency=(9, 9, 9) if mode == "RGB" else 9)
    else:
        clear.convert(mode).save(tmp_path / "a.png")
    image = one(tmp_path)
    assert torch.equal(image[:, :, 12:], torch.ones(3, 16, 4))
    assert not image[:, :, :4].any()


def test_webp_with_alpha(tmp_path):
    Image.new("RGBA", (40, 40), (0, 0, 0, 0)).save(tmp_path / "a.WEBP", "WEBP", lossless=True)
    assert torch.equal(one(tmp_path), torch.ones(3, 16, 16))


def test_sixteen_bit_grey(tmp_path):
    levels = np.full((40, 40), 0x8080, dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert torch.allclose(one(tmp_path), torch.full((3, 16, 16), 128 / 255))


@pytest.mark.parametrize(
    ("kind", "pixel", "expected"),
    [
        (2, struct.pack(">HHH", 0xFFFF, 0x8080, 0), (255, 128, 0)),
        (6, struct.pack(">HHHH", 0, 0, 0, 0), (255, 255, 255)),
        (4, struct.pack(">HH", 0x8080, 0xFFFF), (128, 128, 128)),
    ],
)
def test_sixteen_bit_colour_and_alpha(tmp_path, kind, pixel, expected):
    (tmp_path / "a.png").write_bytes(png(20, 20, kind, 16, [pixel * 20] * 20))
    image = one(tmp_path)
    assert torch.allclose(image[:, 8, 8] * 255, torch.tensor(expected).float(), atol=1)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK"])
def test_other_modes(tmp_path, mode):
    Image.new(mode, (40, 40), 1 if mode == "1" else 255 if mode == "L" else (0, 0, 0, 0)).save(
        tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    )
    assert torch.allclose(one(tmp_path), torch.ones(3, 16, 16), atol=0.01)


def many(root, count=40):
    for i in range(count):
        picture(root / f"{i:02}.png", BLUE)
        (root / f"{i:02}.txt").write_text(f"picture {i}")


def test_broken_headers_are_skipped_named_and_counted(tmp_path):
    many(tmp_path)
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("not a picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "bitmap.png", "BMP")
    with pytest.warns(UserWarning, match="skipped 3 of 43 pictures") as caught:
        d = opened(tmp_path)
    assert len(caught) == 1
    assert all(n in str(caught[0].message) for n in ("empty.jpg", "text.png", "bitmap.png"))
    assert len(d.broken) == 3
    assert len(d) + len(opened_quietly(tmp_path, "validation")) == 40


def opened_quietly(root, split="train"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return opened(root, split)


@pytest.mark.parametrize("name", ["05.png", "05.jpg", "05.webp"])
def test_truncated_pictures_give_way_to_the_next_good_row(tmp_path, name):
    many(tmp_path)
    (tmp_path / "05.png").unlink()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    d = opened_quietly(tmp_path)
    texts = list(d.texts())
    rows = [texts.index("picture 4"), texts.index("picture 5")] if "picture 5" in texts else None
    if rows is None:  # webp checks its length in the header already
        assert any(name in file for file in d.broken)
        return
    with pytest.warns(UserWarning, match=name) as caught:
        b = d.read(rows)
    assert len(caught) == 1
    assert b.texts == ("picture 4", texts[rows[1] + 1])
    assert torch.equal(b.images[0], b.images[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # named once
        assert d.read([rows[1]]).texts == b.texts[1:]
    assert len(d.broken) == 1


def test_too_many_broken_is_an_error(tmp_path):
    many(tmp_path)
    for i in range(4):
        (tmp_path / f"{i:02}.png").write_text("broken")
    assert len(opened_quietly(tmp_path).broken) == 4
    (tmp_path / "04.png").write_text("broken")
    with pytest.raises(BadData, match="5 of 40 pictures are broken"):
        opened(tmp_path)


def test_too_many_broken_behind_the_header(tmp_path):
    many(tmp_path, 10)
    for i in range(8):
        content = (tmp_path / f"{i:02}.png").read_bytes()
        (tmp_path / f"{i:02}.png").write_bytes(content[:60])
    d = opened_quietly(tmp_path)
    with pytest.warns(UserWarning, match="truncated"), pytest.raises(BadData, match="4 of 10 pictures are broken"):
        d.read(range(len(d)))


def test_picture_bomb(tmp_path):
    many(tmp_path, 4)
    (tmp_path / "bomb.png").write_bytes(png(30000, 30000, 0, 8, [b""]))
    (tmp_path / "smaller.png").write_bytes(png(10000, 10000, 0, 8, [b""]))
    with pytest.warns(UserWarning, match="89478485 pixels") as caught:
        d = opened(tmp_path)
    assert len(d.broken) == 2
    assert all("bomb.png" in str(w.message) or w.category is not UserWarning for w in caught)


def test_links_that_leave_the_folder(tmp_path):
    many(tmp_path / "pics", 4)
    picture(tmp_path / "secret.png", RED)
    (tmp_path / "secret.txt").write_text("secret")
    os.symlink(tmp_path / "secret.png", tmp_path / "pics" / "link.png")
    os.symlink(tmp_path / "pics" / "00.png", tmp_path / "pics" / "fine.png")
    os.symlink(tmp_path, tmp_path / "pics" / "up")
    with pytest.warns(UserWarning, match=r"link\.png: a link that leads out|have no caption"):
        d = opened(tmp_path / "pics")
    assert len(d.broken) == 1
    assert not any("up" in str(row.file.name) for row in d._rows)
    os.symlink(tmp_path / "secret.txt", tmp_path / "pics" / "fine.txt")
    with pytest.raises(BadData, match=r"fine\.txt is a link that leads out"):
        opened_quietly(tmp_path / "pics")


def test_no_folder_and_empty_folder(tmp_path):
    with pytest.raises(BadData, match="there is no folder"):
        opened(tmp_path / "nowhere")
    with pytest.raises(BadData, match="folder:PATH"):
        open_folder("", split="train", size=32)
    with pytest.raises(BadData, match="no pictures"):
        opened(tmp_path)
    (tmp_path / ".hidden.png").write_text("")
    with pytest.raises(BadData, match="no pictures"):
        opened(tmp_path)
    (tmp_path / "a.png").write_text("broken")
    with pytest.raises(BadData, match="1 of 1 pictures are broken"):
        opened(tmp_path)


def test_transforms_and_fingerprint(tmp_path):
    many(tmp_path)
    d = opened(tmp_path, transform="dvae")
    assert d.stochastic
    assert d.read([0, 1], Rng(0, [0, 1])).images.shape == (2, 3, 16, 16)
    before = opened(tmp_path).fingerprint
    assert before == opened(tmp_path).fingerprint != d.fingerprint
    (tmp_path / "00.txt").write_text("changed")
    (tmp_path / "01.txt").write_text("changed")
    assert opened(tmp_path).fingerprint != before


def test_a_transform_that_refuses_counts_as_broken(tmp_path):
    many(tmp_path)
    picture(tmp_path / "00.png", size=(10, 10))
    picture(tmp_path / "01.png", size=(10, 10))
    d = opened(tmp_path, transform="dalle-eval")
    with pytest.warns(UserWarning, match="16 px or more"):
        d.read(range(len(d)))


def test_a_huge_strip_is_read(tmp_path):
    picture(tmp_path / "a.png", size=(20000, 1))
    assert one(tmp_path).shape == (3, 16, 16)


def test_module_is_documented_where_users_look():
    assert "captions.jsonl" in folder.__doc__

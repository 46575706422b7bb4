"""The store of codes: equal to encoding, made once, and only where it makes sense."""

import attrs
import pytest
import torch
from train_fakes import FakeCodebook, FakeData, FakeSystem, job

from zoo.parts import Recipe
from zoo.registry import build_system
from zoo.resolution import resolve_tree
from zoo.rng import Rng
from zoo.train.loop import train, update
from zoo.train.store import open_store

PRINTS = {"codebook": "abc"}


def opened(folder, system, data, prints=PRINTS, samples=10**6):
    return open_store(folder, system, "prior", data, prints, samples=samples, device="cpu")


def test_rows_are_what_encoding_gives_with_captions_and_labels(tmp_path):
    system, data = FakeSystem(), FakeData(300)
    store = opened(tmp_path, system, data)
    rows = [299, 0, 17, 17]
    batch, fresh = store.read(rows), data.read(rows)
    assert torch.equal(batch.codes, system.encode("prior", fresh).codes)
    assert batch.codes.dtype == torch.int64
    assert batch.texts == fresh.texts
    assert torch.equal(batch.labels, fresh.labels)
    assert batch.images is None
    assert len(store) == 300
    assert store.values.dtype.name == "int16"


def test_it_is_computed_once_and_not_again(tmp_path):
    data = FakeData()
    first = opened(tmp_path, FakeSystem(), data)
    system = FakeSystem()
    reads, again = data.reads, opened(tmp_path, system, data)
    assert data.reads == reads + 1
    assert system.parts["codebook"].calls <= 3
    assert (again.values == first.values).all()
    assert again.texts == first.texts
    assert len(list(tmp_path.glob("*.safetensors"))) == 1


def test_another_codebook_or_other_data_is_another_store(tmp_path):
    opened(tmp_path, FakeSystem(), FakeData())
    opened(tmp_path, FakeSystem(), FakeData(), prints={"codebook": "other"})
    opened(tmp_path, FakeSystem(), FakeData(60))
    assert len(list(tmp_path.glob("*.safetensors"))) == 3


@attrs.frozen(kw_only=True)
class Rounding:
    up: bool = False
    train: Recipe = attrs.field(factory=Recipe)


def test_other_settings_of_a_frozen_part_are_another_store(tmp_path):
    for settings in (Rounding(), Rounding(up=True), Rounding(train=Recipe(lr=0.5))):
        system = FakeSystem()
        system.parts["codebook"].config = settings
        opened(tmp_path, system, FakeData())
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_another_size_of_latents_is_another_store(tmp_path):
    bare = ["tokenizer=none", "text_encoder=none", "base.reads=nothing", "sr32.reads=nothing"]
    for side in (16, 8, 16):
        node, config = resolve_tree("imagen-tiny", [*bare, f"base_size={side}"])
        system = build_system(node, config, seed=0, device="meta")
        how = {"samples": 10**6, "device": "cpu"}
        store = open_store(tmp_path, system, "base", FakeData(size=32), {"latent": "abc"}, **how)
        assert store.read([3]).z.shape == (1, 3, side, side)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_store_cut_short_by_a_kill_is_made_again(tmp_path):
    system, data = FakeSystem(), FakeData()
    first = opened(tmp_path, system, data)
    next(tmp_path.glob("*.safetensors")).unlink()  # captions are written first
    assert (opened(tmp_path, system, data).values == first.values).all()


class NoisyCodebook(FakeCodebook):
    """Draws its codes."""


class NoisySystem(FakeSystem):
    def encode(self, part, batch, *, rng=None):
        noise = 0 if rng is None else rng.integers(4, 1)
        return attrs.evolve(batch, codes=super().encode(part, batch).codes + noise)


class PixelSystem(FakeSystem):
    def encode(self, part, batch, *, rng=None):
        return batch if batch.z is not None else attrs.evolve(batch, z=2 * batch.images - 1)


@pytest.mark.parametrize("case", ["random transform", "random encoder", "no frozen part", "too few reads", "pixels"])
def test_where_a_store_makes_no_sense_there_is_none(tmp_path, case):
    system, data, prints, samples = FakeSystem(), FakeData(), PRINTS, 10**6
    if case == "random transform":
        data.stochastic = True
    if case == "random encoder":
        system = NoisySystem()
    if case == "pixels":
        system = PixelSystem()
    if case == "no frozen part":
        prints = {}
    if case == "too few reads":
        samples = 49
    assert opened(tmp_path, system, data, prints, samples) is None
    assert not list(tmp_path.iterdir())


def test_training_from_a_store_equals_training_from_pictures(tmp_path):
    recipe = Recipe(lr=1e-2, batch=8, steps=10)
    one, two = job(tmp_path / "a", recipe), job(tmp_path / "b", recipe)
    store = opened(tmp_path / "store", two.generator, FakeData())
    two = attrs.evolve(two, feed=attrs.evolve(two.feed, read=store.read))
    for step in range(5):
        assert update(one, one.feed.at(step), step) == update(two, two.feed.at(step), step)
    data = FakeData()
    three = job(tmp_path / "c", recipe, data=data)
    train(attrs.evolve(three, feed=attrs.evolve(three.feed, read=store.read)), 0)
    assert data.reads == 0


def test_latents_are_kept_as_they_are(tmp_path):
    class LatentSystem(FakeSystem):
        def encode(self, part, batch, *, rng=None):
            return batch if batch.z is not None else attrs.evolve(batch, z=batch.images[:, :1, ::4, ::4] * 3)

    system, data = LatentSystem(), FakeData()
    store = opened(tmp_path, system, data)
    assert torch.equal(store.read([3, 4]).z, system.encode("prior", data.read([3, 4])).z)
    assert store.read([3], Rng(0, [0])).z.shape == (1, 1, 2, 2)

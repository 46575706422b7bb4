"""The public layout: names and sizes of the published models, round trips, and what is refused."""

import hashlib
import sys
from types import ModuleType

import attrs
import pytest
import torch

from zoo.errors import BadWeights, ConfigError
from zoo.weights import read_public
from zoo_vqgan import configs
from zoo_vqgan.interop import PUBLIC, from_taming, to_taming
from zoo_vqgan.model import Vqgan

COUNTS = {  # of the authors' VQModel and GumbelVQ, counted over their parameters
    "vqgan-f16-1024": {
        "encoder": 29_298_176, "decoder": 42_449_795, "quantize": 262_144, "quant_conv": 65_792,
        "post_quant_conv": 65_792, "all": 72_141_699,
    },
    "vqgan-f16-16384": {
        "encoder": 29_298_176, "decoder": 42_449_795, "quantize": 4_194_304, "quant_conv": 65_792,
        "post_quant_conv": 65_792, "all": 76_073_859,
    },
    "vqgan-gumbel-f8-8192": {
        "encoder": 26_345_728, "decoder": 38_316_163, "quantize": 4_202_496, "quant_conv": 65_792,
        "post_quant_conv": 65_792, "all": 68_995_971,
    },
}  # fmt: skip
DIGESTS = {  # tensors, and sha256 over "name shape\n" of each in sorted order, of their state dict
    "vqgan-f16-1024": (343, "8acf990358c998b500ff1b8230085e89c2f946b7c57f8adeccf464e7f4e1cbab"),
    "vqgan-f16-16384": (343, "1e8ed706ef4437dafc54e576eb970f36a32d57d0da7e92496403fdc0d97ca966"),
    "vqgan-gumbel-f8-8192": (301, "2d12de0b1454314f28bc03eb3003de0350b0bdb0ccdc2d47c25eced9ab39cbef"),
}


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def on_meta(name):
    config = PUBLIC[name]()
    with torch.device("meta"):
        return to_taming(Vqgan(config).state_dict(), config), config


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes(name):
    state, config = on_meta(name)
    counts = {"all": 0}
    for key, x in state.items():
        for part in (key.partition(".")[0], "all"):
            counts[part] = counts.get(part, 0) + x.numel()
    assert counts == COUNTS[name]
    assert counts["all"] == config.cost().params
    lines = "".join(f"{key} {list(x.shape)}\n" for key, x in sorted(state.items()))
    assert (len(state), hashlib.sha256(lines.encode()).hexdigest()) == DIGESTS[name]


@pytest.mark.parametrize("name", COUNTS)
def test_layout_is_found_without_values(name):
    state, config = on_meta(name)
    ours = from_taming(state, config)
    with torch.device("meta"):
        own = Vqgan(config).state_dict()
    assert {k: (x.shape, x.dtype) for k, x in ours.items()} == {k: (x.shape, x.dtype) for k, x in own.items()}


def test_round_trips(public):
    ours = from_taming(public.state, public.config)
    assert same(to_taming(ours, public.config), public.state)
    assert same(from_taming(to_taming(ours, public.config), public.config), ours)
    Vqgan(public.config).load_state_dict(ours)


def test_half_precision_stays(public):
    half = {name: x.half() for name, x in public.state.items()}
    assert same(to_taming(from_taming(half, public.config), public.config), half)


def test_a_revived_code_is_written_where_it_is(public):
    if public.config.quantiser == "gumbel":
        return
    ours = from_taming(public.state, public.config)
    ours["quantiser.codes.shift"][3] = 2.0
    moved = to_taming(ours, public.config)["quantize.embedding.weight"] - public.state["quantize.embedding.weight"]
    assert torch.allclose(moved[3], torch.full((20,), 2.0))
    assert float(moved.abs().sum()) == pytest.approx(40, rel=1e-5)


def test_networks_of_the_losses_are_dropped(public):
    extra = {
        "loss.perceptual_loss.net.slice1.0.weight": torch.zeros(64, 3, 3, 3),
        "loss.perceptual_loss.scaling_layer.shift": torch.zeros(1, 3, 1, 1),
        "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4),
    }
    assert same(from_taming(public.state | extra, public.config), from_taming(public.state, public.config))


def test_missing_and_foreign_keys_are_refused(public):
    key = "encoder.down.1.block.0.nin_shortcut.weight"
    lacking = {k: x for k, x in public.state.items() if k != key}
    with pytest.raises(BadWeights, match=f"lack '{key}'"):
        from_taming(lacking, public.config)
    with pytest.raises(BadWeights, match=r"did you mean 'encoder.down.1.block.0.nin_shortcutt.weight'"):
        from_taming(lacking | {key.replace("shortcut", "shortcutt"): public.state[key]}, public.config)
    with pytest.raises(BadWeights, match=r"unexpected 'extra'"):
        from_taming(public.state | {"extra": torch.zeros(1)}, public.config)
    ours = from_taming(public.state, public.config)
    with pytest.raises(BadWeights, match=r"lack 'before.bias'"):
        to_taming({k: x for k, x in ours.items() if k != "before.bias"}, public.config)
    with pytest.raises(BadWeights, match=r"unexpected 'more'"):
        to_taming(ours | {"more": torch.zeros(1)}, public.config)


@pytest.mark.parametrize(
    ("weights", "into", "message"),
    [
        ("vqgan-f16-16384", "vqgan-f16-1024",
         "these weights have 16384 codes; vqgan-f16-1024 has 1024: zoo import vqgan-f16-16384 PATH"),
        ("vqgan-f16-1024", "vqgan-f16-16384",
         "these weights have 1024 codes; vqgan-f16-16384 has 16384: zoo import vqgan-f16-1024 PATH"),
        ("vqgan-gumbel-f8-8192", "vqgan-f16-1024",
         "these weights have 8192 Gumbel codes; vqgan-f16-1024 has 1024 nearest codes: "
         "zoo import vqgan-gumbel-f8-8192 PATH"),
        ("vqgan-f16-1024", "vqgan-gumbel-f8-8192",
         "these weights have 1024 nearest codes; vqgan-gumbel-f8-8192 has 8192 Gumbel codes: "
         "zoo import vqgan-f16-1024 PATH"),
    ],
)  # fmt: skip
def test_weights_of_another_card_name_it(weights, into, message):
    state, _ = on_meta(weights)
    with pytest.raises(BadWeights) as error:
        from_taming(state, PUBLIC[into]())
    assert str(error.value) == message


def test_weights_of_no_card_say_what_to_set():
    """Such as the authors' COCO model: f16 with 8192 nearest codes."""
    config = attrs.evolve(configs.vqgan_f16_1024(), vocab_size=8192)
    with torch.device("meta"):
        state = to_taming(Vqgan(config).state_dict(), config)
    message = "these weights have 8192 codes; vqgan-f16-1024 has 1024: --set vocab_size=8192 --set quantiser=nearest"
    with pytest.raises(BadWeights) as error:
        from_taming(state, configs.vqgan_f16_1024())
    assert str(error.value) == message


def test_what_their_code_has_not_is_refused():
    for convert in (from_taming, to_taming):
        with pytest.raises(ConfigError, match=r"net\.groups: is 4"):
            convert({}, configs.vqgan_tiny())


def test_a_training_checkpoint_is_read_without_their_trainer(tmp_path, public, monkeypatch):
    """As Lightning saves it: the state dict beside counters, optimiser states, and a class of Lightning's as a key."""
    trainer = ModuleType("pytorch_lightning")
    trainer.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning"})
    monkeypatch.setitem(sys.modules, "pytorch_lightning", trainer)
    saved = {
        "epoch": 3,
        "global_step": 1_000,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {trainer.ModelCheckpoint: {"best_model_score": torch.tensor(0.5), "best_model_path": "x"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": []}],
        "state_dict": public.state | {"loss.discriminator.main.0.bias": torch.zeros(64)},
    }
    path = tmp_path / "last.ckpt"
    torch.save(saved, path)
    monkeypatch.undo()
    assert same(from_taming(read_public(path), public.config), from_taming(public.state, public.config))

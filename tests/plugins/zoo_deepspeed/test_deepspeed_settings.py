"""A DeepSpeed JSON of the user's: what it may say, what it may not, and what it contradicts. No process is started."""

import json

import pytest

from zoo.errors import ConfigError
from zoo.parts import Recipe
from zoo.train.copies import Copies
from zoo.train.options import TrainOptions
from zoo_deepspeed import settings
from zoo_deepspeed.settings import LossScaler, Own

RECIPE = Recipe(batch=16, accumulate=2, clip=1.0)


@pytest.fixture
def say(tmp_path):
    """Return a function that writes a user's file."""

    def write(data):
        path = tmp_path / "ds.json"
        path.write_text(data if isinstance(data, str) else json.dumps(data))
        return path

    return write


def refusal(path, precision="fp32", zero=None):
    with pytest.raises(ConfigError) as caught:
        settings.read(path, precision, zero)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_no_file_says_nothing():
    assert settings.read(None, "fp32", 3) == Own()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{", "not a readable DeepSpeed JSON"),
        ("[1]", "an object, not list"),
        ({"fp16": True}, "'fp16' is an object in braces, not true"),
        ({"zero_optimization": 2}, "'zero_optimization' is an object in braces, not 2"),
        ({"zero_optimization": {"offload_param": "cpu"}}, "'zero_optimization.offload_param' is an object"),
        ({"zero_optimisation": {"stage": 2}}, "zero_optimisation: no such field; did you mean 'zero_optimization'"),
        ({"zero_optimization": {"stag": 2}}, "zero_optimization.stag: no such field; did you mean 'stage'"),
        ({"zero_optimization": {"stage": 4}}, "'zero_optimization.stage' is 0, 1, 2 or 3, not 4"),
        ({"zero_optimization": {"stage": "3"}}, "'zero_optimization.stage' is 0, 1, 2 or 3, not \"3\""),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "can be cpu; nvme is not supported"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "can be cpu; nvme is not supported"),
    ],
)
def test_what_cannot_be_read_is_refused(say, data, said):
    assert said in refusal(say(data))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    assert "not a readable DeepSpeed JSON" in refusal(tmp_path / "no.json")


@pytest.mark.parametrize("name", settings.REFUSED)
def test_what_the_zoo_decides_is_refused_with_what_to_do(say, name):
    data = {"enabled": True}
    for key in reversed(name.split(".")):
        data = {key: data}
    assert f"'{name}' cannot be set here: {settings.REFUSED[name]}" in refusal(say(data))


@pytest.mark.parametrize(
    ("data", "precision", "zero", "said"),
    [
        ({"bf16": {"enabled": True}}, "fp16", None, "enables bf16 and the command says --precision fp16"),
        ({"fp16": {"enabled": True}}, "resblock", None, "enables fp16 and the command says --precision resblock"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "bf16", None, "enables bf16, fp16 and the command"),
        ({"bf16": {"enabled": True}}, "fp32", None, "enables bf16: add --precision bf16, or take it out"),
        ({"zero_optimization": {"stage": 2}}, "fp32", 3, "zero_optimization.stage=2 and the command --zero 3"),
    ],
)
def test_what_contradicts_a_flag_is_refused_and_both_are_named(say, data, precision, zero, said):
    assert said in refusal(say(data), precision, zero)


@pytest.mark.parametrize(
    ("data", "precision", "zero"),
    [
        ({}, "fp32", 2),
        ({"fp16": {"enabled": True}}, "fp16", None),
        ({"fp16": {"enabled": False}, "bf16": {"enabled": "auto"}}, "bf16", None),
        ({"zero_optimization": {"stage": 3}}, "fp32", 3),
        ({"zero_optimization": {"stage": "auto"}}, "fp32", 1),
    ],
)
def test_what_agrees_is_taken(say, data, precision, zero):
    assert settings.read(say(data), precision, zero).data == data


@pytest.mark.parametrize(
    ("said", "zero", "stage"), [({}, None, 1), ({"stage": 3}, None, 3), ({"stage": "auto"}, None, 1), ({}, 0, 0)]
)
def test_the_stage_is_the_commands_else_the_files_else_1(said, zero, stage):
    assert settings.stage_of(TrainOptions(model="m", zero=zero), Own(None, {"zero_optimization": said})) == stage


@pytest.mark.parametrize(
    ("name", "wrong", "right", "flag"),
    [
        ("train_batch_size", 32, 16, "--batch"),
        ("train_micro_batch_size_per_gpu", 8, 4, "--batch and --accumulate"),
        ("gradient_accumulation_steps", 1, 2, "--accumulate"),
        ("gradient_clipping", 0.5, 1.0, "PART.train.clip"),
    ],
)
def test_what_contradicts_the_recipe_is_refused_and_both_are_named(say, name, wrong, right, flag):
    own = settings.read(say({name: wrong}), "fp32", None)
    with pytest.raises(ConfigError) as caught:
        settings.training(2, own, RECIPE, Copies(shards=2), 1000)
    assert str(caught.value).endswith(f"says {name}={wrong} and the run has {right} ({flag})")
    for agreed in (right, "auto"):
        made = settings.training(2, settings.read(say({name: agreed}), "fp32", None), RECIPE, Copies(shards=2), 1000)
        assert made["train_batch_size"] == 16


def test_the_users_numbers_are_kept_and_the_zoos_added(say):
    data = {"wall_clock_breakdown": True, "bf16": {"enabled": True}, "zero_optimization": {"reduce_bucket_size": 77}}
    own = settings.read(say(data), "bf16", None)
    made = settings.training(2, own, RECIPE, Copies(shards=2), 1000)
    assert made["wall_clock_breakdown"] is True
    assert made["zero_optimization"]["reduce_bucket_size"] == 77
    assert made["zero_optimization"]["stage"] == 2
    assert made["gradient_clipping"] == 0.0
    assert "bf16" not in made
    numbers = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [made[name] for name in numbers] == [16, 4, 2]
    built = settings.building(3, Own(None, {"train_batch_size": 99}), 2)  # whose batch is not known yet
    assert built["zero_optimization"]["stage"] == 3


def test_the_loss_scaler_has_deepspeeds_names(say):
    own = settings.read(say({"fp16": {"enabled": True, "loss_scale_window": 5}}), "fp16", None)
    assert own.scaler() == LossScaler(loss_scale_window=5)
    own = settings.read(say({"fp16": {"enabled": True, "loss_scale_windw": 5}}), "fp16", None)
    with pytest.raises(ConfigError, match=r"fp16\.loss_scale_windw: no such field; did you mean 'loss_scale_window'"):
        own.scaler()

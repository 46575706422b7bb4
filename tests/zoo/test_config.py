import json
import tomllib
from typing import Any, Literal

import attrs
import pytest
import tomli_w
from attrs import validators as v

from zoo.config import parse_overrides, parse_scalar, plain, structure, value, without_none
from zoo.errors import ConfigError
from zoo.parts import Recipe, Ref


@attrs.frozen(kw_only=True)
class Inner:
    depth: int = attrs.field(default=2, validator=v.ge(1))
    rate: float = 0.5


@attrs.frozen(kw_only=True)
class Outer:
    name: str = "x"
    on: bool = False
    kind: Literal["row", "column", 3] = "row"
    size: int | None = None
    label: str | None = None
    pair: tuple[int, int] = (1, 2)
    grids: tuple[tuple[int, int], ...] = ()
    inner: Inner = Inner()
    train: Recipe = attrs.field(default=Recipe())
    part: Ref = attrs.field(default=Ref("bpe-tiny", "tokenizer"))
    other: Ref | None = None


FULL = Outer(
    name="none of it", on=True, kind=3, size=7, label="a", pair=(3, 4), grids=((1, 2), (3, 4)),
    inner=Inner(depth=5, rate=1e-9), train=Recipe(clip=None, betas=(0.5, 0.25)), other=Ref("clip", "reranker"),
)  # fmt: skip


@pytest.mark.parametrize("config", [Outer(), FULL], ids=["default", "full"])
def test_round_trips(config: Outer) -> None:
    data = plain(config)
    assert structure(data, Outer) == config
    assert structure(json.loads(json.dumps(data)), Outer) == config
    assert structure(tomllib.loads(tomli_w.dumps(without_none(data))), Outer) == config


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"on": "false"}, "on: expected true or false, got 'false'"),
        ({"on": 1}, "on: expected true or false, got 1"),
        ({"size": 3.7}, "size: expected an integer, got 3.7"),
        ({"size": 3.0}, "size: expected an integer, got 3.0"),
        ({"size": True}, "size: expected an integer, got True"),
        ({"size": "3"}, "size: expected an integer, got '3'"),
        ({"name": 3}, "name: expected a string, got 3"),
        ({"name": None}, "name: expected a string, got None"),
        ({"kind": "colunm"}, "kind: expected one of 'row', 'column', 3, got 'colunm'; did you mean 'column'?"),
        ({"kind": 3.0}, "kind: expected one of 'row', 'column', 3, got 3.0"),
        ({"pair": [1]}, "pair: expected 2 values, got 1"),
        ({"pair": 1}, "pair: expected tuple[int, int], got 1"),
        ({"pair": "12"}, "pair: expected tuple[int, int], got '12'"),
        ({"grids": [[1, 2], [3, 4.5]]}, "grids: expected an integer, got 4.5"),
        ({"inner": {"dept": 2}}, "inner.dept: no such field; did you mean 'depth'?"),
        ({"inner": {"zzz": 2}}, "inner.zzz: no such field; it has depth, rate"),
        ({"inner": {"rate": "fast"}}, "inner.rate: expected a number, got 'fast'"),
        ({"inner": {"depth": 0}}, "inner: 'depth' must be >= 1: 0"),
        ({"inner": 3}, "inner: expected the fields of Inner, got 3"),
        ({"nmae": "y"}, "nmae: no such field; did you mean 'name'?"),
        ({"train": {"lr": -1.0}}, "train: 'lr' must be > 0: -1.0"),
        ({"train": {"optimizer": "adamm"}}, "train.optimizer: expected one of 'adamw', 'adam', got 'adamm'"),
    ],
)
def test_a_wrong_field_says_its_path_the_type_and_the_nearest_name(data: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        structure(data, Outer)
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_paths_begin_where_they_are_told_to() -> None:
    with pytest.raises(ConfigError, match=r"^prior\.inner\.dept: no such field; did you mean 'depth'\?$"):
        structure({"inner": {"dept": 1}}, Outer, "prior")
    with pytest.raises(ConfigError, match=r"^prior\.depth: expected an integer, got 2\.5$"):
        value(2.5, int, "prior.depth")
    with pytest.raises(ConfigError, match=r"^prior\.train: expected the fields of Recipe, got 3$"):
        value(3, Recipe, "prior.train")


def test_missing_required_field_is_named() -> None:
    @attrs.frozen(kw_only=True)
    class Needs:
        x: int

    with pytest.raises(ConfigError, match="the field 'x' is missing"):
        structure({}, Needs)


def test_an_integer_is_a_number_and_a_value_may_be_one_already() -> None:
    assert structure({"inner": {"rate": 1}}, Outer).inner.rate == 1.0
    assert value(Inner(depth=9), Inner, "inner") == Inner(depth=9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", 2), ("2.5", 2.5), ("1e-4", 1e-4), ("true", True), ("False", False), ("none", None), ("null", None),
        ("[1, 2]", [1, 2]), ("vqvae", "vqvae"), ('"5"', "5"), ("runs/e", "runs/e"), ("", ""),
    ],
)  # fmt: skip
def test_command_line_scalars(text: str, expected: object) -> None:
    result = parse_scalar(text)
    assert result == expected
    assert type(result) is type(expected)


def test_overrides_parse() -> None:
    wanted = parse_overrides(["prior.depth=2", "codebook = vqvae", "x=a=b", "prior.depth=3"])
    assert wanted == {("prior", "depth"): 3, ("codebook",): "vqvae", ("x",): "a=b"}
    assert parse_overrides("a=1") == {("a",): 1}
    assert parse_overrides({"a.b": "1"}) == {("a", "b"): "1"}
    for bad in ("depth", "=3", " = 3"):
        with pytest.raises(ConfigError, match="not of the form field=value"):
            parse_overrides([bad])

"""Runs that were begun before a config had some of its fields go on: what they lack counts as its default."""

import json
import shutil
import tomllib

import pytest
import tomli_w
from short_runs import equal, go, interrupted, saved

from zoo.errors import BadRun

RUN = {"model": "clip-tiny", "steps": 4}
NEWER = {"moments", "moments_kernel", "ema_device", "logit_scale_max", "lowercase"}
"""Fields with defaults: of the recipe, of the part, and of the part inside the part."""


def without(data, names):
    """Plain data without these fields, wherever they are."""
    if isinstance(data, list):
        return [without(x, names) for x in data]
    return {k: without(x, names) for k, x in data.items() if k not in names} if isinstance(data, dict) else data


def rewrite(folder, change):
    """Change what run.toml says of the config, and what the checkpoints say."""
    run = tomllib.loads((folder / "run.toml").read_text())
    (folder / "run.toml").write_text(tomli_w.dumps({**run, "config": change(run["config"])}))
    for path in folder.glob("checkpoints/*/step-*/manifest.json"):
        said = json.loads(path.read_text())
        path.write_text(json.dumps({**said, "facts": change(said["facts"])}))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped") / "run"
    interrupted(folder, 2, **RUN)
    return folder


@pytest.fixture
def older(stopped, tmp_path):
    """A run that was stopped, as it would be if it had been begun before there were the newer fields."""
    shutil.copytree(stopped, tmp_path / "run")
    rewrite(tmp_path / "run", lambda data: without(data, NEWER))
    return tmp_path / "run"


def test_an_older_run_goes_on_as_if_nothing_had_come(older, tmp_path):
    before = (older / "run.toml").read_text()
    assert not any(name in before for name in NEWER)
    go(older, resume=True, **RUN)
    go(tmp_path / "whole", **RUN)
    for role in ("reranker", "reranker.tokenizer"):
        assert equal(saved(older, role), saved(tmp_path / "whole", role)), role
    assert (older / "run.toml").read_text() == (tmp_path / "whole" / "run.toml").read_text()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("train.moments=16-bit", "recipe.moments='fp32', not '16-bit'"),
        ("train.ema_device=cpu", "recipe.ema_device='same', not 'cpu'"),
        ("logit_scale_max=3.5", "config.reranker.logit_scale_max=4.6"),
    ],
)
def test_another_value_than_the_default_is_another_setting(older, change, said):
    before = (older / "run.toml").read_text()
    with pytest.raises(BadRun) as error:
        go(older, resume=True, set=(change,), **RUN)
    assert f"made with {said}" in str(error.value)
    assert change.partition("=")[2] in str(error.value)
    assert (older / "run.toml").read_text() == before


def test_a_trained_part_of_an_older_run_has_the_defaults(older):
    with pytest.raises(BadRun, match=r"'reranker.tokenizer' is trained with other settings, lowercase=True and not Fa"):
        go(older, set=("tokenizer.lowercase=false",), **RUN)


@pytest.mark.parametrize("where", ["run", "checkpoint"])
def test_a_field_that_is_no_more_is_named(stopped, tmp_path, where):
    shutil.copytree(stopped, tmp_path / "run")
    run = (tmp_path / "run" / "run.toml").read_text()
    rewrite(tmp_path / "run", lambda data: json.loads(json.dumps(data).replace('"activation"', '"gone"')))
    if where == "checkpoint":
        (tmp_path / "run" / "run.toml").write_text(run)
    with pytest.raises(BadRun, match=r"gone: no such field"):
        go(tmp_path / "run", resume=True, **RUN)

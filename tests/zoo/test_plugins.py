"""Discovery and isolation: four misses, four messages; a failing plugin stops no other."""

import warnings
from collections.abc import Callable

import pytest

import zoo
from zoo import plugins
from zoo.errors import NameClash, NotInstalled, PluginFailed, UnknownName, WrongApi, ZooError
from zoo.plugins import Plugins
from zoo.specs import DatasetSpec

GOOD = """
    from zoo.hookspecs import hookimpl
    from zoo.specs import DatasetSpec
    ZOO_API = 1

    @hookimpl
    def zoo_specs():
        return [DatasetSpec(name="{name}", open="json:loads")]
"""
CARD = """
    [models."{name}"]
    plugin = "{plugin}"
    variant = "x"
    kind = "prior"
    summary = "for a test"
    pip = "{pip}"
"""


def test_four_misses_are_four_messages(make_plugin: Callable[..., Plugins]) -> None:
    make_plugin(
        "acme_fails",
        "raise RuntimeError('boom\\nand more')",
        CARD.format(name="acme/fails", plugin="acme_fails", pip=""),
    )
    make_plugin("acme_old", "ZOO_API = 0", CARD.format(name="acme/old", plugin="acme_old", pip="x"), version="0.1")
    make_plugin("acme_cards", "ZOO_API = 1", CARD.format(name="acme/gone", plugin="acme_gone", pip="acme-gone[all]"))
    expected = {
        "dalel": (UnknownName, "model 'dalel' is unknown; did you mean 'dalle'?"),
        "acme/gone": (NotInstalled, "plugin 'acme_gone' is not installed; type: pip install acme-gone[all]"),
        "acme/fails": (
            PluginFailed,
            "plugin 'acme_fails' (acme-fails 1.0) failed to import: RuntimeError: boom and more",
        ),
        "acme/old": (WrongApi, "plugin 'acme_old' (acme-old 0.1) is written for plugin API 0, this zoo has API 1"),
    }
    texts = set()
    for name, (kind, text) in expected.items():
        with pytest.raises(kind) as error:
            zoo.build(name)
        assert text in str(error.value)
        assert "\n" not in str(error.value)
        texts.add(str(error.value))
    assert len(texts) == 4
    with pytest.raises(PluginFailed) as error:
        zoo.build("acme/fails")
    assert isinstance(error.value.__cause__, RuntimeError)


def test_an_unknown_vendor_is_said(make_plugin: Callable[..., Plugins]) -> None:
    with pytest.raises(UnknownName, match="is the package of 'nobody' installed"):
        zoo.build("nobody/model")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("from zoo.hookspecs import hookimpl\nZOO_API = 1\n@hookimpl\ndef zoo_spec(): return []", "zoo_spec"),
        (
            "from zoo.hookspecs import hookimpl\nZOO_API = 1\n@hookimpl\ndef zoo_specs(wrong): return []",
            "wrong",
        ),
        ("from zoo.hookspecs import hookimpl\nZOO_API = 1\n@hookimpl\ndef zoo_specs(): 1 / 0", "ZeroDivisionError"),
        ("from zoo.hookspecs import hookimpl\nZOO_API = 1\n@hookimpl\ndef zoo_specs(): return [3]", "returned 3"),
        ("ZOO_API = '1'", "plugin API 1"),
        ("", "states no ZOO_API"),
        ("import no_such_module_anywhere", "ModuleNotFoundError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("def f(:", "SyntaxError"),
    ],
    ids=["misspelt", "argument", "raises", "no-spec", "api-text", "no-api", "dependency", "exit", "syntax"],
)
def test_each_failure_is_isolated_and_says_which_package(
    make_plugin: Callable[..., Plugins], code: str, text: str
) -> None:
    make_plugin("acme_bad", code, version="2.3")
    found = make_plugin("acme_good", GOOD.format(name="acme-data"))
    with pytest.raises(ZooError) as error:
        found.specs("acme_bad")
    assert text in str(error.value)
    assert "'acme_bad' (acme-bad 2.3)" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(type(error.value)):
        found.specs("acme_bad")
    assert len(found.specs("acme_good")) == 1
    assert found.specs("zoo")
    with pytest.warns(UserWarning, match="acme_bad"):
        assert found.find(DatasetSpec, "acme-data", "dataset").name == "acme-data"


def test_a_failing_plugin_is_reported_once(make_plugin: Callable[..., Plugins]) -> None:
    found = make_plugin("acme_bad", "1 / 0")
    with pytest.warns(UserWarning, match="acme_bad") as record:
        list(found.all_specs())
    assert len([w for w in record if "acme_bad" in str(w.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(found.all_specs())
        found.find(DatasetSpec, "shapes", "dataset")


def test_nothing_is_imported_before_it_is_needed(make_plugin: Callable[..., Plugins]) -> None:
    make_plugin("acme_bad", "1 / 0", CARD.format(name="acme/x", plugin="acme_bad", pip="x"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        names = [card.name for card in zoo.list_models()]
        zoo.resolve("bpe-tiny")
    assert "acme/x" in names


def test_two_packages_claiming_one_plugin_name_are_both_named(make_plugin: Callable[..., Plugins]) -> None:
    make_plugin("acme_one", GOOD.format(name="one"), point="acme")
    found = make_plugin("acme_two", GOOD.format(name="two"), point="acme", version="9")
    with pytest.raises(NameClash) as error:
        found.specs("acme")
    assert "acme-one 1.0" in str(error.value)
    assert "acme-two 9" in str(error.value)
    assert found.specs("zoo_text")


def test_two_plugins_claiming_one_dataset_are_both_named(make_plugin: Callable[..., Plugins]) -> None:
    found = make_plugin("acme_one", GOOD.format(name="shapes"))
    with pytest.raises(NameClash, match=r"'zoo' \(image-zoo .*'acme_one' \(acme-one 1\.0\)"):
        found.find(DatasetSpec, "shapes", "dataset")


def test_unknown_dataset_names_the_nearest(make_plugin: Callable[..., Plugins]) -> None:
    with pytest.raises(UnknownName, match="dataset 'shape' is unknown; did you mean 'shapes'"):
        plugins.installed().find(DatasetSpec, "shape", "dataset")


def test_hooks_are_called_one_by_one(make_plugin: Callable[..., Plugins]) -> None:
    hook = """
        from zoo.hookspecs import hookimpl
        ZOO_API = 1
        seen = []

        @hookimpl
        def zoo_train_step(run, step, metrics):
            {body}
    """
    make_plugin("acme_one", hook.format(body="seen.append(step)"))
    make_plugin("acme_two", hook.format(body="raise OSError('disk')"))
    found = make_plugin("acme_three", hook.format(body="seen.append(metrics['loss'])"))
    with pytest.warns(UserWarning, match="plugin 'acme_two' failed in zoo_train_step: OSError: disk") as record:
        names = [name for name, _ in found.call("zoo_train_step", run=None, step=7, metrics={"loss": 0.5})]
    assert sorted(names) == ["acme_one", "acme_three"]
    assert len(record) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(found.call("zoo_train_step", run=None, step=8, metrics={"loss": 0.25}))
    import acme_one
    import acme_three

    assert acme_one.seen == [7, 8]
    assert acme_three.seen == [0.5, 0.25]


def test_first_result_hooks_say_who_answered(make_plugin: Callable[..., Plugins]) -> None:
    hook = """
        from zoo.hookspecs import hookimpl
        ZOO_API = 1

        @hookimpl
        def zoo_fetch(uri, dest):
            return {result}
    """
    make_plugin("acme_one", hook.format(result="None"))
    found = make_plugin("acme_two", hook.format(result="dest"))
    results = dict(found.call("zoo_fetch", uri="s3://x", dest="there"))
    assert results["acme_two"] == "there"
    assert results.get("acme_one") is None


def test_builtin_plugins_all_load() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = {origin.name for origin, _ in plugins.installed().all_specs() if origin.distribution == "image-zoo"}
    assert {"zoo", "zoo_text", "zoo_dvae", "zoo_vqvae", "zoo_dalle", "zoo_clip"} <= found

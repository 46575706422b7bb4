import inspect

import pytest

from zoo import errors
from zoo.errors import UnknownName, ZooError, suggest


def test_every_situation_is_a_class_of_its_own() -> None:
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == "zoo.errors"]
    assert len(found) > 10
    assert all(issubclass(c, ZooError) for c in found)


@pytest.mark.parametrize(
    ("word", "known", "tail"),
    [
        ("dalel", ["dalle", "clip"], "; did you mean 'dalle'?"),
        ("dept", ["depth", "width"], "; did you mean 'depth'?"),
        ("zzz", ["depth", "width"], ""),
        ("x", [], ""),
    ],
)
def test_suggest(word: str, known: list[str], tail: str) -> None:
    assert suggest(word, known) == tail


def test_unknown_name_says_what_which_and_the_nearest() -> None:
    error = UnknownName("model", "dalel", iter(["dalle"]), "see `zoo list`")
    assert str(error) == "model 'dalel' is unknown; did you mean 'dalle'?; see `zoo list`"
    assert error.name == "dalel"

from collections.abc import Callable
from pathlib import Path

import attrs
import pytest

import zoo
from zoo.catalogue import Catalogue, builtin_path, catalogue
from zoo.errors import ConfigError, NameClash, UnknownName
from zoo.plugins import Plugins

CARD = """
[models."{name}"]
plugin = "acme"
variant = "x"
kind = "prior"
summary = "for a test"
"""


def read(tmp_path: Path, text: str, found: Catalogue | None = None, origin: str = "acme") -> Catalogue:
    path = tmp_path / f"{origin}.toml"
    path.write_text(text)
    found = found or Catalogue()
    found.read(path, origin)
    return found


def test_our_catalogue_reads_and_has_the_laptop_and_paper_systems() -> None:
    names = {card.name for card in zoo.list_models()}
    assert {"dalle", "dalle-12b", "dvae", "dvae-8192", "vqvae", "pixelcnn", "clip", "bpe-shapes"} <= names
    assert builtin_path().name == "registry.toml"


def test_cards_are_sorted_and_frozen() -> None:
    cards = zoo.list_models()
    assert [card.name for card in cards] == sorted(card.name for card in cards)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        cards[0].name = "x"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[models", "not a TOML file"),
        (CARD.format(name="x") + "colour = 3", "card 'x': colour: no such field"),
        (CARD.format(name="x") + "parms = 3", "card 'x': parms: no such field; did you mean 'params'?"),
        (CARD.format(name="x") + "params = 3.5", "card 'x': params: expected an integer, got 3.5"),
        (CARD.format(name="x") + "params = -1", "card 'x': 'params' must be >= 0"),
        (CARD.format(name="x").replace("prior", "piror"), "card 'x': 'kind' must be in"),
        ('[models."x"]\nplugin = "a"', "is missing"),
        ("models = 3", "models: expected a table, got 3"),
        ("[models]\nx = 3", "models: expected a table, got 3"),
        ("aliases = 3", "aliases: expected a table, got 3"),
        ("[aliases]\nx = 3", "aliases: expected a string, got 3"),
    ],
)
def test_a_bad_file_is_one_line_that_names_it(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert message in str(error.value)
    assert "acme.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_file_adds_no_card(tmp_path: Path) -> None:
    found = Catalogue()
    with pytest.raises(ConfigError):
        read(tmp_path, CARD.format(name="good") + CARD.format(name="bad") + "colour = 3", found)
    assert not found.cards


def test_aliases(tmp_path: Path) -> None:
    found = read(tmp_path, CARD.format(name="acme/long-name") + '[aliases]\n"acme/short" = "acme/long-name"')
    assert found.get("acme/short").name == "acme/long-name"
    assert "acme/short" in found
    assert "acme/none" not in found
    with pytest.raises(UnknownName, match="did you mean 'acme/short'"):
        found.get("acme/shrot")


@pytest.mark.parametrize(
    ("theirs", "asked"),
    [
        (CARD.format(name="a"), "a"),
        ('[aliases]\na = "b"\n' + CARD.format(name="b"), "a"),
        (CARD.format(name="alias"), "alias"),
        ('[aliases]\nalias = "b"\n' + CARD.format(name="b"), "alias"),
    ],
    ids=["card-card", "alias-card", "card-alias", "alias-alias"],
)
def test_two_packages_claiming_one_name_are_both_named(tmp_path: Path, theirs: str, asked: str) -> None:
    found = read(tmp_path, CARD.format(name="a") + CARD.format(name="z") + '[aliases]\nalias = "z"', origin="first")
    read(tmp_path, theirs, found, origin="second")
    with pytest.raises(NameClash, match="first and second"):
        found.get(asked)
    assert found.get("z").name == "z"


def test_a_broken_third_party_catalogue_is_a_warning(make_plugin: Callable[..., Plugins]) -> None:
    make_plugin("acme_toml", "ZOO_API = 1", "[models")
    with pytest.warns(UserWarning, match=r"'acme_toml' \(acme-toml 1\.0\) is left out"):
        found = catalogue()
    assert "dalle" in found.cards


def test_third_party_cards_know_their_distribution(make_plugin: Callable[..., Plugins]) -> None:
    make_plugin("acme_ok", "1 / 0", CARD.format(name="acme/x"))
    assert catalogue().get("acme/x").origin == "acme-ok"
    assert catalogue().get("dalle").origin == "image-zoo"

"""The README says what the code says."""

import re
from pathlib import Path

from zoo import registry
from zoo.commands.catalogue import table

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_models_is_the_catalogue():
    ours = [card for card in registry.list_models() if card.origin == "image-zoo"]
    found = re.search(r"<!-- models[^\n]*-->\n(.*)\n<!-- end models -->", README, re.S)
    assert found is not None
    assert found[1] == table(ours)


def test_the_first_two_commands_are_there_and_can_be_run():
    commands = re.findall(r"^    \./(scripts/\w+)", README, re.M)
    assert commands == ["scripts/quickstart", "scripts/test"]
    assert all((ROOT / name).stat().st_mode & 0o111 for name in commands)


def test_every_path_the_readme_links_to_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_plugin_says_what_it_is():
    for plugin in sorted((ROOT / "plugins").glob("zoo_*")):
        assert (plugin / "README.md").stat().st_size > 500, plugin

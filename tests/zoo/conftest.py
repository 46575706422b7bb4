"""A small weight file, and plugins made on the spot: a folder that is a package with metadata, put on the path."""

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zoo import catalogue, plugins, weights

sys.path.insert(0, str(Path(__file__).parent))  # for faulty_parts

PluginMaker = Callable[..., plugins.Plugins]


def clear() -> None:
    plugins.installed.cache_clear()
    catalogue.catalogue.cache_clear()


@pytest.fixture
def make_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PluginMaker]:
    """Return `make(name, code, cards="", version="1.0", distribution=None, point=None)`; it installs a plugin."""
    made: list[str] = []

    def make(
        name: str,
        code: str,
        cards: str = "",
        version: str = "1.0",
        distribution: str | None = None,
        point: str | None = None,
    ) -> plugins.Plugins:
        distribution = distribution or name.replace("_", "-")
        site = tmp_path / "sites" / distribution
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").write_text(textwrap.dedent(code))
        if cards:
            (site / name / "registry.toml").write_text(textwrap.dedent(cards))
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(f"[zoo]\n{point or name} = {name}\n")
        monkeypatch.syspath_prepend(site)
        made.append(name)
        clear()
        return plugins.installed()

    clear()
    yield make
    for name in made:
        for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[module]
    clear()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Return a weight file with one tensor, "a", and two facts."""
    import torch

    path = tmp_path / "x.safetensors"
    weights.save_tensors(path, {"a": torch.arange(6.0)}, {"part": "codebook", "step": 7})
    return path

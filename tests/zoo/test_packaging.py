"""Folders, entry points and packages are one set; the wheel has everything and nothing else."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from zoo import plugins

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = {p.name for p in (ROOT / "plugins").iterdir() if p.is_dir() and not p.name.startswith((".", "__"))}


def test_folders_entry_points_and_packages_are_one_set() -> None:
    points = PROJECT["project"]["entry-points"]["zoo"]
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert points == {name: name for name in FOLDERS}
    assert set(packages) == {"zoo"} | {f"plugins/{name}" for name in FOLDERS}
    assert len(packages) == len(set(packages))


def test_what_is_installed_is_what_is_declared() -> None:
    ours = {o.name for o in plugins.installed().origins.values() if o.distribution == "image-zoo"}
    assert ours == FOLDERS | {"zoo"}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_a_plugin_has_its_files(name: str) -> None:
    here = {p.name for p in (ROOT / "plugins" / name).iterdir()}
    assert {"__init__.py", "README.md"} <= here
    if not (ROOT / "plugins" / name / "model.py").exists():
        return
    assert "configs.py" in here


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = folder.glob("image_zoo-*.whl")
    return path


def test_the_wheel_has_everything_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == FOLDERS | {"zoo"}
    assert "zoo/registry.toml" in names
    for folder, prefix in ((ROOT / "zoo", "zoo"), *((ROOT / "plugins" / n, n) for n in FOLDERS)):
        sources = {f"{prefix}/{p.relative_to(folder).as_posix()}" for p in folder.rglob("*.py")}
        assert sources <= names, sorted(sources - names)
    assert not [n for n in names if n.endswith((".pyc", ".part", ".tmp"))]


def test_the_wheel_alone_lists_and_builds(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = f"""
import sys
ours = {{"", {str(ROOT)!r}, {str(ROOT / "plugins")!r}}}  # the editable install; a .venv may lie inside the root
sys.path = [{str(site)!r}] + [p for p in sys.path if p not in ours]
import zoo
assert zoo.__file__.startswith({str(site)!r}), zoo.__file__
assert "dalle" in [card.name for card in zoo.list_models()]
g = zoo.build("dalle-tiny")
assert g.parts["prior"].plugin == "zoo_dalle"
assert all(m.__file__.startswith({str(site)!r}) for n, m in sys.modules.items() if n.startswith("zoo_"))
print("built")
"""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "built"

"""Which way imports go, and that what promises no torch imports none."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CORE = sorted((ROOT / "zoo").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").glob("*/**/*.py"))
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))


def imports(path: Path, top_only: bool = False) -> Iterator[str]:
    """Yield the modules a file imports; `top_only` leaves out functions and `if TYPE_CHECKING`."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                yield str(child.module)
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            elif (top_only and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)) or (
                top_only and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            ):
                continue
            else:
                yield from walk(child)

    yield from walk(ast.parse(path.read_text()))


def within(module: str, packages: set[str]) -> bool:
    return any(module == p or module.startswith(f"{p}.") for p in packages)


def name_of(path: Path) -> str:
    base = ROOT if path.is_relative_to(ROOT / "zoo") else ROOT / "plugins"
    parts = path.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", CORE, ids=lambda p: name_of(p))
def test_the_core_knows_no_plugin(path: Path) -> None:
    assert not [module for module in imports(path) if module.startswith("zoo_")]


@pytest.mark.parametrize("path", PLUGINS, ids=lambda p: name_of(p))
def test_a_plugin_knows_no_other_and_never_calls_the_registry(path: Path) -> None:
    own = path.relative_to(ROOT / "plugins").parts[0]
    found = set(imports(path))
    assert not [m for m in found if m.startswith("zoo_") and not within(m, {own})]
    upward = {f"zoo.{m}" for m in ("registry", "construct", "resolution", "runs", "plugins", "catalogue", "cli",
                                   "commands", "generators", "testing")}  # fmt: skip
    if own != "zoo_deepspeed":  # an engine works inside the trainer
        upward.add("zoo.train")
    assert not [m for m in found if within(m, upward)]


LOWER = {"errors", "parts", "specs", "interfaces", "hookspecs", "rng", "files", "fetching", "weights", "pickles",
         "cost", "systems", "nn", "data", "config", "plugins", "catalogue", "builtin"}  # fmt: skip
UPPER = {"zoo.registry", "zoo.construct", "zoo.runs", "zoo.resolution", "zoo.generators", "zoo.train", "zoo.cli",
         "zoo.front", "zoo.commands", "zoo.testing", "zoo.planning"}  # fmt: skip


@pytest.mark.parametrize("path", CORE, ids=lambda p: name_of(p))
def test_layers_of_the_core(path: Path) -> None:
    found = set(imports(path))
    inner = path.relative_to(ROOT / "zoo").with_suffix("").parts[0]
    if inner in LOWER:
        assert not [m for m in found if within(m, UPPER)]
    if inner in {"registry", "construct", "runs", "resolution", "generators", "testing"}:
        assert not [m for m in found if within(m, {"zoo.train", "zoo.cli", "zoo.front", "zoo.commands"})]
    if inner == "train":
        assert not [m for m in found if within(m, {"zoo.commands", "zoo.testing", "zoo.cli"})]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_scripts_are_short_fronts(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 25
    ours = [m for m in imports(path) if m == "zoo" or m.startswith(("zoo.", "zoo_"))]
    assert ours
    assert not [m for m in ours if m.startswith("zoo_")]


PROMISED = [p for p in [*CORE, *PLUGINS] if "no torch" in (ast.get_docstring(ast.parse(p.read_text())) or "").lower()]
WITHOUT_TORCH = sorted(
    {name_of(p) for p in PROMISED}
    | {name_of(p) for p in PLUGINS if p.name in ("__init__.py", "configs.py", "systems.py")}
    | {f"zoo.{m}" for m in ("errors", "specs", "hookspecs", "parts", "interfaces", "config", "plugins", "catalogue",
                            "registry", "resolution", "systems", "builtin", "runs", "cli", "front", "testing",
                            "commands.catalogue", "commands.plugins")}
    | {"zoo"}
)  # fmt: skip


def test_what_promises_no_torch_imports_none() -> None:
    """One interpreter for all: after each import torch is still absent."""
    code = f"""
import importlib, sys
sys.path[:0] = {sys.path!r}
for name in {WITHOUT_TORCH!r}:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name
import zoo
zoo.list_models()
assert "torch" not in sys.modules, "list_models"
assert not [m for m in sys.modules if m.startswith("zoo_") and m not in {WITHOUT_TORCH!r}]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_zoo_list_imports_no_torch_and_no_plugin() -> None:
    code = f"""
import sys
sys.path[:0] = {sys.path!r}
from zoo.cli import main
assert main(["list"]) == 0
sys.exit([m for m in sys.modules if m == "torch" or m.startswith("zoo_")] or 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "dalle" in done.stdout


def test_import_zoo_imports_nothing_heavy() -> None:
    code = f"import sys; sys.path[:0] = {sys.path!r}; import zoo; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "attrs", "attr", "cattrs", "pluggy", "click", "PIL", "matplotlib", "tqdm"}
    assert not heavy & set(done.stdout.split())


@pytest.mark.parametrize("path", [*CORE, *PLUGINS], ids=lambda p: name_of(p))
def test_files_stay_small(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= 400
    if path.name == "__init__.py" and path in PLUGINS:
        assert len(lines) < 40 + 15, "a plugin's __init__ is its hook and nothing else"


def test_folders_are_not_packages() -> None:
    for name in ("plugins", "scripts", "tests"):
        assert not (ROOT / name / "__init__.py").exists()

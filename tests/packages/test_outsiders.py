"""Other people's packages, built into wheels and installed in a throw-away place: nothing of ours is touched."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def install(source: Path, folder: Path) -> Path:
    """Build a package into a wheel and install it; return where its own files are."""
    copy = folder / "src" / source.name
    shutil.copytree(source, copy)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", copy]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob(f"{source.name}-*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-cache-dir"]
    subprocess.run([*pip, "--target", folder / source.name, wheel], check=True, capture_output=True)
    return copy


class Place:
    """An environment with some outsiders installed."""

    def __init__(self, folder: Path, *packages: str) -> None:
        self.folder = folder
        self.paths = [str(folder / name) for name in packages]

    def run(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run python with these arguments."""
        inherited = os.environ.get("PYTHONPATH")
        here = [str(ROOT / p) if not os.path.isabs(p) else p for p in inherited.split(os.pathsep)] if inherited else []
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([*self.paths, *here]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=self.folder, env=env, capture_output=True, text=True, check=False)

    def zoo(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run the `zoo` command."""
        return self.run("-m", "zoo.cli", *arguments)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("outsiders")
    for name in ("acme_uniform", "acme_broken"):
        install(HERE / name, folder)
    return folder


@pytest.fixture(scope="module")
def good(folder: Path) -> Place:
    return Place(folder, "acme_uniform")


@pytest.fixture(scope="module")
def beside_broken(folder: Path) -> Place:
    return Place(folder, "acme_uniform", "acme_broken")


def test_cards_are_listed_with_ours(good: Place) -> None:
    done = good.zoo("list", "--json")
    assert done.returncode == 0, done.stderr
    cards = {card["name"]: card for card in json.loads(done.stdout)}
    assert cards["acme/uniform"]["origin"] == "acme-uniform"
    assert cards["acme/uniform"]["kind"] == "prior"
    assert "dalle" in cards


def test_listing_imports_neither_torch_nor_the_plugin(good: Place) -> None:
    code = "import sys, zoo; zoo.list_models(); sys.exit('torch' in sys.modules or 'acme_uniform' in sys.modules)"
    assert good.run("-c", code).returncode == 0


def test_info_counts_its_parts(good: Place) -> None:
    done = good.zoo("info", "acme/dalle-uniform", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["plugin"] == "acme_uniform"
    assert facts["parts"]["prior"]["params"] == 16 * 32 + 384 * 32
    assert facts["params"] == sum(part["params"] for part in facts["parts"].values())


def test_its_own_conformance_test_passes(good: Place, folder: Path) -> None:
    test = folder / "src" / "acme_uniform" / "tests" / "test_acme_uniform.py"
    done = good.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", test.parent, test)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_it_trains_reranks_and_loads(good: Place, folder: Path) -> None:
    train = [ROOT / "scripts" / "train.py", "--model", "acme/dalle-uniform", "--out", "run"]
    done = good.run(*train, "--data", "shapes:n=64", "--steps", 3, "--batch", 8, "--seed", 1)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {"codebook", "prior", "reranker"} <= {row["part"] for row in rows}
    assert (folder / "run" / "prior.safetensors").exists()
    code = """if True:
        import torch, zoo
        g = zoo.load("run")
        assert all(g.ready.values()), g.ready
        assert g.parts["prior"].plugin == "acme_uniform" and g.parts["prior"].version == "0.3.0"
        assert g.parts["prior"].table.abs().max() > 0, "the prior did not learn"
        images = g.generate(["a red circle", "a blue square"], images_per_prompt=2, rerank=4, seed=3)
        assert images.shape == (4, 3, 16, 16), images.shape
        assert torch.equal(images, g.generate(["a red circle", "a blue square"], 2, rerank=4, seed=3))
    """
    done = good.run("-c", code)
    assert done.returncode == 0, done.stderr
    done = good.zoo("sample", "run", "a red circle", "-n", 2, "--rerank", 4, "--seed", 0, "--out", "grid.png")
    assert done.returncode == 0, done.stderr
    assert (folder / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_any_part_takes_its_prior(good: Place) -> None:
    done = good.zoo("info", "dalle-tiny", "--set", "prior=acme/uniform", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["parts"]["prior"]["plugin"] == "acme_uniform"


@pytest.mark.parametrize("command", [("list",), ("list", "--json"), ("plugins",), ("info", "acme/dalle-uniform")])
def test_a_broken_plugin_stops_nothing(beside_broken: Place, command: tuple[str, ...]) -> None:
    done = beside_broken.zoo(*command)
    assert done.returncode == 0, done.stderr
    assert "acme" in done.stdout
    assert "Traceback" not in done.stderr


def test_a_broken_plugin_is_named_once(beside_broken: Place) -> None:
    done = beside_broken.zoo("plugins")
    text = done.stdout + done.stderr
    assert text.count("failed to import") == 1
    assert "acme-broken 6.6.6" in text
    assert "RuntimeError: the flux capacitor is missing" in text
    code = "from zoo.registry import open_dataset as o; o('shapes:n=4', size=16); o('shapes:n=4', size=16)"
    done = beside_broken.run("-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("flux capacitor") == 1


def test_asking_for_a_broken_plugins_model_is_one_line(beside_broken: Place) -> None:
    done = beside_broken.zoo("info", "acme/broken")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "'acme_broken' (acme-broken 6.6.6) failed to import: RuntimeError: the flux capacitor is missing" in line
    done = beside_broken.run(ROOT / "scripts" / "train.py", "--model", "acme/broken", "--out", "never")
    assert done.returncode == 2
    assert "failed to import: RuntimeError" in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (beside_broken.folder / "never").exists()


def test_the_cause_stays_for_developers(beside_broken: Place) -> None:
    done = beside_broken.zoo("--debug", "info", "acme/broken")
    assert "Traceback" in done.stderr
    assert "acme_broken/__init__.py" in done.stderr


def test_doctor_names_the_patient(beside_broken: Place) -> None:
    done = beside_broken.zoo("doctor")
    assert done.returncode == 2
    (line,) = [line for line in done.stdout.splitlines() if "FAILED" in line]
    assert "acme-broken" in line
    assert "flux capacitor" in line
    assert "acme_uniform" in done.stdout

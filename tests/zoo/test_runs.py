"""Run folders: written whole, read strictly, taken as parts, and never silently inconsistent."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from zoo.errors import BadRun, BadWeights, PartMismatch, UnknownName
from zoo.registry import build_system, load_system
from zoo.resolution import resolve_tree
from zoo.runs import RunFolder
from zoo.testing.kit import Pictures


def make(
    path: Path, name: str = "dalle-tiny", overrides: tuple[str, ...] = (), done: tuple[str, ...] = (), seed: int = 0
) -> tuple[RunFolder, Any]:
    """Return a run folder in which the roles `done` are finished, and the system in it."""
    node, config = resolve_tree(name, overrides)
    built = build_system(node, config, seed=seed)
    run = RunFolder.create(path, node, config, seed=seed, data="shapes")
    for role in done:
        if hasattr(built.parts[role], "fit"):
            built.parts[role].fit(Pictures(16), seed=0)
        run.save_part(role, built.parts[role])
    return run, built


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(x, two[name]) for name, x in one.items())


ALL = ("tokenizer", "codebook", "prior", "reranker.tokenizer", "reranker")


def test_a_run_is_rebuilt_from_its_folder_with_no_name(tmp_path: Path) -> None:
    run, built = make(tmp_path / "r", overrides=("prior.depth=2", "codebook.vocab_size=16"), done=ALL)
    g = zoo.load(str(tmp_path / "r"))
    assert g.config == built.config == run.config
    assert g.card == "dalle-tiny"
    assert all(g.ready.values())
    for role in ALL:
        assert same(g.parts[role], built.parts[role])
    assert g.parts["prior"].card == "dalle-prior-tiny"
    assert g.generate(["a red circle"], 2).shape == (2, 3, g.config.image_size, g.config.image_size)


def test_run_toml_has_the_config_and_the_versions(tmp_path: Path) -> None:
    make(tmp_path / "r", overrides=("prior.depth=2",), seed=3)
    data = tomllib.loads((tmp_path / "r" / "run.toml").read_text())
    assert data["card"] == "dalle-tiny"
    assert data["seed"] == 3
    assert data["config"]["prior"]["depth"] == 2
    assert data["config"]["prior"]["vocab_size"] == 32
    assert {"python", "torch", "zoo", "zoo_dalle", "zoo_text"} <= data["versions"].keys()


def test_a_run_with_unfinished_parts_loads(tmp_path: Path) -> None:
    _, built = make(tmp_path / "r", done=("codebook",))
    g = zoo.load(tmp_path / "r")
    assert {role for role, ready in g.ready.items() if ready} == {"codebook"}
    assert same(g.parts["codebook"], built.parts["codebook"])


def test_a_run_of_a_part_gives_the_part(tmp_path: Path) -> None:
    _, built = make(tmp_path / "r", name="dvae-tiny", done=("codebook",))
    part = zoo.load(str(tmp_path / "r"))
    assert same(part, built.parts["codebook"])
    assert part.card == "dvae-tiny"
    assert set(load_system(str(tmp_path / "r")).parts) == {"codebook"}


def test_a_nested_part_goes_by_its_dotted_role(tmp_path: Path) -> None:
    _, built = make(tmp_path / "r", name="clip-tiny", done=("reranker.tokenizer", "reranker"))
    assert (tmp_path / "r" / "reranker.tokenizer.safetensors").exists()
    part = zoo.load(str(tmp_path / "r"))
    assert same(part.tokenizer, built.parts["reranker.tokenizer"])


def test_a_folder_that_has_a_cards_name_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, built = make(tmp_path / "dvae", name="dvae-tiny", done=("codebook",))
    monkeypatch.chdir(tmp_path)
    assert same(zoo.load("dvae"), built.parts["codebook"])


def test_a_run_stands_in_a_parts_place(tmp_path: Path) -> None:
    _, whole = make(tmp_path / "a", overrides=("codebook.vocab_size=16",), done=ALL)
    _, alone = make(tmp_path / "b", name="dvae-tiny", overrides=("vocab_size=24",), done=("codebook",))
    for path, built, size in (("a", whole, 16), ("b", alone, 24)):
        g = zoo.build("dalle-tiny", overrides=[f"codebook={tmp_path / path}"])
        assert g.parts["prior"].vocab_size == size
        assert same(g.parts["codebook"], built.parts["codebook"])
        assert g.ready["codebook"]
        assert not g.ready["prior"]
    g = zoo.build("dalle-tiny", overrides=[f"reranker={tmp_path / 'a'}"])
    assert same(g.parts["reranker.tokenizer"], whole.parts["reranker.tokenizer"])
    assert g.ready["reranker"]
    assert g.ready["reranker.tokenizer"]


def test_a_run_without_the_part_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "r", name="dvae-tiny")
    with pytest.raises(PartMismatch, match="has 0 parts of kind prior"):
        zoo.resolve("dalle-tiny", [f"prior={tmp_path / 'r'}"])


def test_parts_of_other_runs_are_copied_in(tmp_path: Path) -> None:
    other, built = make(tmp_path / "a", name="dvae-tiny", done=("codebook",))
    make(tmp_path / "b", overrides=(f"codebook={tmp_path / 'a'}",))
    other.part_path("codebook").unlink()
    g = zoo.load(str(tmp_path / "b"))
    assert g.ready["codebook"]
    assert same(g.parts["codebook"], built.parts["codebook"])


def test_another_copy_is_never_overwritten(tmp_path: Path) -> None:
    make(tmp_path / "a", name="dvae-tiny", done=("codebook",))
    run, _ = make(tmp_path / "b", done=("codebook",), seed=1)
    before = run.part_path("codebook").read_bytes()
    with pytest.raises(BadRun, match="use another --out"):
        make(tmp_path / "b", overrides=(f"codebook={tmp_path / 'a'}",), seed=1)
    assert run.part_path("codebook").read_bytes() == before


def test_what_is_trained_keeps_its_settings(tmp_path: Path) -> None:
    make(tmp_path / "r", done=("tokenizer", "codebook"))
    make(tmp_path / "r")
    make(tmp_path / "r", overrides=("prior.depth=2",))
    before = (tmp_path / "r" / "run.toml").read_text()
    with pytest.raises(BadRun, match=r"'codebook' is trained with other settings, n_hid=8 and not 16; use another"):
        make(tmp_path / "r", overrides=("codebook.n_hid=16",))
    with pytest.raises(BadRun, match="was begun with seed 0, not 1"):
        make(tmp_path / "r", seed=1)
    with pytest.raises(BadRun, match="was begun with card 'dalle-tiny'"):
        make(tmp_path / "r", name="dvae-tiny")
    assert (tmp_path / "r" / "run.toml").read_text() == before


def test_a_part_that_came_later_is_the_default_one(tmp_path: Path) -> None:
    run, _ = make(tmp_path / "r", name="clip-tiny")
    text = (run.path / "run.toml").read_text()
    (run.path / "run.toml").write_text(text.partition("[config.tokenizer]")[0] + "[config.train]\nlr = 0.5\n")
    config = RunFolder(run.path).config
    assert (config.tokenizer.card, config.train.lr, config.train.batch) == ("bpe-shapes", 0.5, 64)


DVAE = 'card = "x"\n[config]\ncard = "dvae-tiny"\ninterface = "codebook"\nplugin = "zoo_dvae"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is not a run folder: it has no run.toml"),
        ("[oops", "cannot be read"),
        ("", "has format None; this zoo reads 1"),
        ("format = 2\n[config]", "has format 2; this zoo reads 1"),
        ("format = 1\n[config]\nx = 1", "run.toml"),
        (f"format = 1\n{DVAE}n_hdi = 3", "did you mean 'n_hid'"),
    ],
)  # fmt: skip
def test_a_folder_that_is_no_run_is_one_line(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "run.toml").write_text(text)
    with pytest.raises(BadRun) as error:
        zoo.load(str(tmp_path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_or_nothing_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("x")
    for name in ("f", "none"):
        with pytest.raises(BadRun, match="is not a run folder"):
            zoo.load(str(tmp_path / name))
    node, config = resolve_tree("dvae-tiny")
    with pytest.raises(BadRun, match="is a file; a run is a folder"):
        RunFolder.create(tmp_path / "f", node, config, seed=0, data="shapes")


def test_a_run_of_a_plugin_that_has_gone_names_it(tmp_path: Path) -> None:
    make(tmp_path, name="dvae-tiny")
    path = tmp_path / "run.toml"
    path.write_text(path.read_text().replace("dvae-tiny", "dvae-gone"))
    with pytest.raises(UnknownName, match="dvae-gone"):
        zoo.load(str(tmp_path))


def test_truncated_weights_are_one_line_and_stay(tmp_path: Path) -> None:
    run, _ = make(tmp_path / "r", done=("codebook", "tokenizer"))
    path = run.part_path("codebook")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadWeights, match="codebook"):
        zoo.load(str(run.path))
    assert path.stat().st_size == 200


def test_weights_of_another_size_are_refused(tmp_path: Path) -> None:
    run, _ = make(tmp_path / "r", done=("codebook",))
    other, _ = make(tmp_path / "o", overrides=("codebook.vocab_size=16",), done=("codebook",))
    run.part_path("codebook").write_bytes(other.part_path("codebook").read_bytes())
    with pytest.raises(BadWeights, match="shape"):
        zoo.load(str(run.path))


def test_a_part_trained_on_another_part_is_refused_with_the_command(tmp_path: Path) -> None:
    run, built = make(tmp_path / "r", done=("tokenizer", "codebook"))
    run.save_part("prior", built.parts["prior"], trained_on={"codebook": run.fingerprint("codebook")})
    assert zoo.load(str(run.path)).ready["prior"]
    with torch.no_grad():
        next(built.parts["codebook"].parameters()).add_(1)
    run.save_part("codebook", built.parts["codebook"])
    with pytest.raises(BadRun) as error:
        zoo.load(str(run.path))
    assert "'prior' was trained on another 'codebook'" in str(error.value)
    assert "scripts/train.py" in str(error.value)
    run.part_path("codebook").unlink()
    with pytest.raises(BadRun, match="'prior' was trained on another 'codebook'"):
        zoo.load(str(run.path))


def test_a_part_without_a_stage_names_the_stage_that_trains_it(tmp_path: Path) -> None:
    run, built = make(tmp_path / "r", name="imagen-tiny")
    files = {role: run.save_part(role, built.parts[role]) for role in ("text_encoder", "base")}
    with pytest.raises(BadRun) as error:
        make(tmp_path / "r", name="imagen-tiny", overrides=("text_encoder.depth=3",))
    assert f"delete {files['text_encoder']} and {files['base']} to train it again" in str(error.value)
    run.save_part("text_encoder", built.parts["text_encoder"], trained_on={"tokenizer": "0" * 64})
    with pytest.raises(BadRun) as error:
        zoo.load(str(run.path))
    again = f"rm {files['text_encoder']} {files['base']} && python scripts/train.py --model {run.path} --part base"
    assert str(error.value).endswith(again)
    files["base"].unlink()
    with pytest.raises(BadRun, match=rf"rm {files['text_encoder']} && .* --part base$"):
        zoo.load(str(run.path))


def test_a_finished_file_says_what_it_is(tmp_path: Path) -> None:
    from zoo.weights import read_metadata

    run, built = make(tmp_path / "r")
    run.save_part("prior", built.parts["prior"], trained_on={"codebook": "ab"}, extra={"step": 3})
    header = read_metadata(run.part_path("prior"))
    assert header["card"] == "dalle-prior-tiny"
    assert header["plugin"] == "zoo_dalle"
    assert "ab" in str(header["trained_on"])


def test_overrides_change_a_run_that_is_not_trained(tmp_path: Path) -> None:
    make(tmp_path / "r", done=("codebook",))
    g = zoo.build(str(tmp_path / "r"), overrides=["prior.depth=1"])
    assert g.parts["prior"].config.depth == 1
    assert g.ready["codebook"]

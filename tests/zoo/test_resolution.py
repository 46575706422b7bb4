"""Names and overrides to one bound config: strict, and the parts of a system agree."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zoo
from zoo import resolution
from zoo.config import without_none
from zoo.errors import ConfigError, PartMismatch, UnknownName, ZooError
from zoo.parts import Facts, Recipe
from zoo.plugins import Plugins
from zoo.resolution import bind, dump, is_run, node_of, resolve_tree, undump
from zoo.runs import RunFolder

NAME = "dalle-tiny"


def test_the_prior_follows_codebook_and_tokenizer() -> None:
    config = zoo.resolve(NAME)
    codebook, tokenizer, prior = config.codebook.config, config.tokenizer.config, config.prior.config
    assert prior.vocab_size == codebook.vocab_size
    assert prior.grids == codebook.facts(config.image_size).grids
    assert (prior.text_vocab, prior.text_length) == (tokenizer.vocab_size, tokenizer.length)
    assert config.codebook.config.image_size == config.image_size


def test_another_codebook_is_followed() -> None:
    config = zoo.resolve(NAME, ["codebook=dvae"])
    assert config.codebook.card == "dvae"
    assert config.prior.vocab_size == config.codebook.vocab_size == zoo.resolve("dvae").vocab_size
    assert config.prior.grids == ((8, 8),)


def test_parts_are_replaced_before_fields_are_set_whatever_the_order() -> None:
    overrides = ["codebook.vocab_size=64", "codebook=dvae", "prior.depth=3", "prior.depth=2"]
    config = zoo.resolve(NAME, overrides)
    assert config.codebook.n_hid == zoo.resolve("dvae").n_hid
    assert config.prior.vocab_size == config.codebook.vocab_size == 64
    assert config.prior.depth == 2


@pytest.mark.parametrize("order", [("tokenizer", "text_encoder"), ("text_encoder", "tokenizer")])
def test_parts_that_were_not_there_are_bound_in_one_order(order: tuple[str, str]) -> None:
    cards = {"tokenizer": "bpe-tiny", "text_encoder": "t5-tiny"}
    root = node_of("imagen-tiny")
    for role in cards:
        del root.children[role]
    for role in order:
        root.children[role] = node_of(cards[role])
    config = bind(root)
    tokenizer = config.tokenizer.config
    assert (tokenizer.vocab_size, tokenizer.length) == (384, 32)
    assert (config.text_encoder.config.text_vocab, config.base.config.text_length) == (384, 32)
    assert config.base.config.text_width == config.text_encoder.config.facts(32).width


def test_overrides_in_any_order_are_one_config(tmp_path: Path) -> None:
    bare = ["tokenizer=none", "text_encoder=none", "base.reads=nothing", "sr32.reads=nothing"]
    node, config = resolve_tree("imagen-tiny", bare)
    RunFolder.create(tmp_path / "r", node, config, seed=0, data="shapes")
    back = ["base.reads=text", "sr32.reads=text", "tokenizer=bpe-tiny", "text_encoder=t5-tiny"]
    one, two = (zoo.resolve(str(tmp_path / "r"), overrides) for overrides in (back, back[::-1]))
    assert one == two == zoo.resolve("imagen-tiny", back)


def test_the_picture_size_reaches_every_part() -> None:
    config = zoo.resolve(NAME, ["image_size=16"])
    assert config.prior.grids == ((4, 4),)
    assert config.codebook.image_size == 16
    assert config.reranker.image_size == 32  # its own: it resizes what it is given


def test_a_rerankers_tokenizer_is_its_own() -> None:
    config = zoo.resolve(NAME, ["tokenizer=bpe-shapes"])
    assert config.prior.text_vocab == 1024
    assert config.reranker.text_vocab == config.reranker.tokenizer.vocab_size == 384
    nested = zoo.resolve(NAME, ["reranker.tokenizer=bpe-shapes"])
    assert (nested.prior.text_vocab, nested.reranker.text_vocab) == (384, 1024)


def test_a_part_card_stands_alone() -> None:
    prior = zoo.resolve("dalle-prior-tiny", ["depth=2"])
    assert prior.vocab_size is not None
    assert prior.grids is not None
    assert prior.depth == 2


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("prior.dept=2", "prior.dept: no such field; did you mean 'depth'?"),
        ("priro.depth=2", "priro.depth: no such field; did you mean 'prior'?"),
        ("prior.depth=2.5", "prior.depth: expected an integer, got 2.5"),
        ("prior.depth=two", "prior.depth: expected an integer, got 'two'"),
        ("prior.depth=none", "prior.depth: expected an integer, got None"),
        ("prior.depth=0", "prior: 'depth' must be >= 1: 0"),
        ("prior.heads=3", "prior: 'heads' must divide width"),
        ("prior.reads=idz", "prior.reads: expected one of 'ids', 'label', 'nothing', got 'idz'; did you mean 'ids'?"),
        ("prior.train.lrr=1", "prior.train.lrr: no such field; did you mean 'lr'?"),
        ("prior.train.lr=fast", "prior.train.lr: expected a number, got 'fast'"),
        ("prior.train.lr=-1", "prior.train: 'lr' must be > 0: -1"),
        ("prior.train.lr.x=1", "prior.train.lr.x: 'lr' has no fields of its own here"),
        ("prior.train=3", "prior.train: expected the fields of Recipe, got 3"),
        ("sampling.top_p=2", "sampling: 'top_p' must be <= 1"),
        ("image_size=big", "image_size: expected an integer, got 'big'"),
        ("codebook=3", "codebook: expected the name of a card or a run folder, got 3"),
        ("codebook=none", "codebook: this system needs a codebook; it cannot be none"),
        ("prior", "override 'prior' is not of the form field=value"),
    ],
)
def test_a_wrong_override_is_one_line_with_its_path(override: str, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        zoo.resolve(NAME, [override])
    assert str(error.value).startswith(text)
    assert "\n" not in str(error.value)


def test_a_mapping_is_as_strict_as_strings() -> None:
    recipe = Recipe(lr=0.5)
    config = zoo.resolve(NAME, {"prior.depth": 2, "reranker": None, "prior.train": recipe})
    assert config.prior.depth == 2
    assert config.reranker is None
    assert config.prior.train == recipe
    with pytest.raises(ConfigError, match=r"prior\.depth: expected an integer, got '2'"):
        zoo.resolve(NAME, {"prior.depth": "2"})
    with pytest.raises(ConfigError, match=r"tokenizer\.lowercase: expected true or false, got 'false'"):
        zoo.resolve(NAME, {"tokenizer.lowercase": "false"})


def test_a_nested_field_keeps_the_others() -> None:
    plain = zoo.resolve(NAME).prior.train
    changed = zoo.resolve(NAME, ["prior.train.lr=0.125", "prior.train.betas=[0.5, 0.75]"]).prior.train
    assert (changed.lr, changed.betas) == (0.125, (0.5, 0.75))
    assert changed.steps == plain.steps


def test_an_optional_part_can_go() -> None:
    config = zoo.resolve(NAME, ["reranker=none"])
    assert config.reranker is None
    with pytest.raises(ConfigError, match=r"reranker\.patch: 'reranker' has no fields of its own here"):
        zoo.resolve(NAME, ["reranker=none", "reranker.patch=4"])


def test_an_absent_part_can_come() -> None:
    node, config = resolve_tree("dalle-12b", ["reranker=clip-tiny"])
    assert config.reranker.tokenizer.card == "bpe-tiny"
    assert node.children["reranker"].card == "clip-tiny"


@pytest.mark.parametrize(
    ("override", "kind", "text"),
    [
        ("codebook=clip-tiny", PartMismatch, "'clip-tiny' is a reranker, and a codebook is needed here"),
        ("codebook=dvea", UnknownName, "model 'dvea' is unknown; did you mean 'dvae'?"),
        ("codebook=runs/none", UnknownName, "model 'runs/none' is unknown"),
    ],
)
def test_a_wrong_part_is_refused(override: str, kind: type[ZooError], text: str) -> None:
    with pytest.raises(kind) as error:
        zoo.resolve(NAME, [override])
    assert text in str(error.value)


def test_a_field_set_by_hand_that_disagrees_names_both() -> None:
    with pytest.raises(PartMismatch) as error:
        zoo.resolve(NAME, ["prior.vocab_size=99"])
    assert str(error.value) == "prior.vocab_size is set to 99, but codebook has 32; leave prior.vocab_size open"
    with pytest.raises(PartMismatch, match=r"reranker\.text_vocab is set to 99, but reranker\.tokenizer has 384"):
        zoo.resolve(NAME, ["reranker.text_vocab=99"])
    with pytest.raises(PartMismatch, match=r"codebook\.image_size is set to 64, but dalle-tiny has"):
        zoo.resolve(NAME, ["codebook.image_size=64"])
    assert zoo.resolve(NAME, ["prior.vocab_size=32"]).prior.vocab_size == 32


def test_a_codebook_that_has_no_grid_for_the_picture_is_refused() -> None:
    with pytest.raises(ZooError, match="multiple of 4"):
        zoo.resolve(NAME, ["image_size=30"])


@pytest.mark.parametrize("name", ["dalle-tiny", "dalle-12b", "clip-tiny", "bpe-tiny"])
def test_a_bound_config_is_written_and_read_back(name: str) -> None:
    node, config = resolve_tree(name, ["train.lr=0.5"] if name == "clip-tiny" else [])
    data = without_none(dump(config, node))
    assert bind(undump(data)) == config


def test_what_was_written_is_read_strictly() -> None:
    node, config = resolve_tree(NAME)
    data = dump(config, node)
    data["prior"]["dept"] = 3
    with pytest.raises(ConfigError, match=r"prior\.dept: no such field; did you mean 'depth'"):
        undump(data)
    del data["prior"]["dept"]
    data["prior"]["depth"] = 2.5
    with pytest.raises(ConfigError, match=r"prior\.depth: expected an integer, got 2\.5"):
        undump(data)


class Given:
    """A codebook that is nobody's: an object with facts."""

    vocab_size = 7

    def facts(self, image_size: int) -> Facts:
        return Facts(vocab_size=7, grids=((2, image_size // 8),))


def test_an_object_is_followed_like_a_card() -> None:
    node, config = resolve_tree(NAME, parts={"codebook": Given()})
    assert config.codebook.given
    assert config.prior.vocab_size == 7
    assert config.prior.grids == ((2, config.image_size // 8),)
    assert node.children["codebook"].card == "Given"


def test_an_object_has_no_fields_to_set() -> None:
    with pytest.raises(ConfigError, match=r"codebook\.vocab_size: 'Given' was given as an object"):
        resolve_tree(NAME, ["codebook.vocab_size=8"], parts={"codebook": Given()})
    with pytest.raises(ConfigError, match=r"codebok: no such field; did you mean 'codebook'"):
        resolve_tree(NAME, parts={"codebok": Given()})
    with pytest.raises(ConfigError, match="image_size: no such field"):
        resolve_tree(NAME, parts={"image_size": Given()})


def test_classes_of_the_data_fill_a_system_that_leaves_them_open() -> None:
    overrides: list[str] = ["prior.reads=label", "tokenizer=none"]
    _, config = resolve_tree(NAME, overrides, classes=5)
    assert config.classes == config.prior.classes == 5
    _, config = resolve_tree(NAME, [*overrides, "classes=3"], classes=5)
    assert config.classes == config.prior.classes == 3


CARDS = """
    [models."acme/wide"]
    plugin = "zoo_dvae"
    variant = "dvae-tiny"
    kind = "codebook"
    summary = "a card that changes its variant"
    overrides = ["vocab_size=48", "train.steps=7"]

    [models."acme/system"]
    plugin = "zoo_dalle"
    variant = "dalle-tiny"
    kind = "generator"
    summary = "a system that changes its parts"
    overrides = ["codebook=acme/wide", "prior.depth=2"]

    [models."acme/wrong"]
    plugin = "zoo_dvae"
    variant = "dvae-tiny"
    kind = "codebook"
    summary = "a card with a wrong override"
    overrides = ["vocab=48"]
"""


def test_overrides_of_a_card_hold_wherever_it_stands(make_plugin: Callable[..., Plugins]) -> None:
    make_plugin("acme_cards", "ZOO_API = 1", CARDS)
    alone = zoo.resolve("acme/wide")
    assert (alone.vocab_size, alone.train.steps) == (48, 7)
    inside = zoo.resolve(NAME, ["codebook=acme/wide"])
    assert inside.codebook.vocab_size == inside.prior.vocab_size == 48
    system = zoo.resolve("acme/system")
    assert system.codebook.card == "acme/wide"
    assert (system.prior.vocab_size, system.prior.depth) == (48, 2)
    assert zoo.resolve("acme/system", ["prior.depth=3", "codebook.vocab_size=40"]).prior.vocab_size == 40
    with pytest.raises(ConfigError, match="vocab: no such field; did you mean 'vocab_size'"):
        zoo.resolve("acme/wrong")


def test_a_card_is_never_taken_for_a_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dalle").mkdir()
    (tmp_path / "dalle" / "run.toml").write_text("format = 1")
    assert not is_run("dalle")
    assert is_run(str(tmp_path / "dalle"))


def test_resolving_needs_no_torch() -> None:
    code = "import sys, zoo; zoo.resolve('dalle-12b', ['prior.depth=2']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"]).returncode == 0


def test_a_denoiser_that_reads_no_picture_cannot_enlarge(monkeypatch: pytest.MonkeyPatch) -> None:
    known = resolution.fields

    def without(cls: type) -> dict[str, Any]:
        return {name: kind for name, kind in known(cls).items() if (cls.__name__, name) != ("EfficientUNet", "low")}

    monkeypatch.setattr(resolution, "fields", without)
    with pytest.raises(PartMismatch, match="sr32: 'imagen-sr-tiny' does not read the picture of the stage below"):
        zoo.resolve("imagen-tiny")

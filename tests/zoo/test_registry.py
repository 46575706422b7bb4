"""zoo.build, load, info: what is built, where, and what is refused before it is built."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import zoo
from zoo import construct as building
from zoo.errors import BadWeights, ConfigError, DoesNotFit, NotReady, PluginFailed, UnknownName
from zoo.fetching import sha256
from zoo.parts import Facts
from zoo.plugins import Plugins
from zoo.registry import build_system, open_dataset
from zoo.resolution import resolve_tree
from zoo.weights import save_tensors


def test_a_system_has_its_parts_by_role() -> None:
    g = zoo.build("dalle-tiny")
    assert set(g.parts) == {"tokenizer", "codebook", "prior", "reranker", "reranker.tokenizer"}
    assert g.card == "dalle-tiny"
    assert g.plugin == "zoo_dalle"
    assert g.parts["prior"].card == "dalle-prior-tiny"
    assert g.parts["codebook"].config.vocab_size == g.parts["prior"].vocab_size
    assert g.version == g.parts["codebook"].version == zoo.__version__
    assert g.config.codebook.config == g.parts["codebook"].config
    assert not any(g.ready.values())


def test_a_part_card_gives_the_part() -> None:
    part = zoo.build("dvae-tiny", overrides=["vocab_size=16"])
    assert isinstance(part, nn.Module)
    assert (part.card, part.plugin, part.vocab_size) == ("dvae-tiny", "zoo_dvae", 16)


def test_without_weights_it_refuses_to_generate() -> None:
    g = zoo.build("dalle-tiny")
    with pytest.raises(NotReady, match=r"codebook.*--model dalle-tiny"):
        g.generate(["a red circle"])


def test_dtype_is_of_the_parameters_and_stays_there() -> None:
    part = zoo.build("dvae-tiny", dtype=torch.bfloat16)
    assert {p.dtype for p in part.parameters()} == {torch.bfloat16}
    assert torch.get_default_dtype() == torch.float32


def test_info_counts_without_building() -> None:
    facts = zoo.info("dalle-12b")
    assert facts["name"] == "dalle-12b"
    assert facts["kind"] == "generator"
    assert 11.9e9 < facts["parts"]["prior"]["params"] < 12.4e9
    assert facts["parts"]["codebook"]["params"] == 53_786_240 + 43_829_766
    assert facts["params"] == sum(part["params"] for part in facts["parts"].values())
    json.dumps(facts)
    assert zoo.info("dalle-12b", ["prior.depth=2"])["params"] < facts["params"]


def test_a_large_model_answers_on_the_meta_device_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "free_memory", lambda device: 10**9)
    with pytest.warns(UserWarning, match="needs [0-9,]+ bytes of parameters and cpu has 1,000,000,000 free") as record:
        g = zoo.build("dalle-12b")
    assert len(record) == 1
    assert "--zero 3" in str(record[0].message)
    assert all(p.is_meta for p in g.parameters())
    with pytest.raises(NotReady):
        g.generate(["a red circle"])


def test_an_explicit_device_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    need = sum(p.nbytes for p in zoo.build("dvae-tiny").parameters())
    monkeypatch.setattr(building, "free_memory", lambda device: need - 1)
    with pytest.raises(DoesNotFit, match=f"needs {need:,} bytes of parameters and cpu has {need - 1:,} free"):
        zoo.build("dvae-tiny", device="cpu")
    half = zoo.build("dvae-tiny", device="cpu", dtype=torch.bfloat16)
    assert not any(p.is_meta for p in half.parameters())
    monkeypatch.setattr(building, "free_memory", lambda device: need)
    assert not any(p.is_meta for p in zoo.build("dvae-tiny", device="cpu").parameters())


def test_the_meta_device_asks_for_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "free_memory", lambda device: 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one = zoo.build("dvae-tiny", device="meta")
        with torch.device("meta"):
            two = zoo.build("dvae-tiny")
    assert all(p.is_meta for part in (one, two) for p in part.parameters())


def test_a_part_with_no_parameters_fits_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "free_memory", lambda device: 0)
    assert zoo.build("bpe-tiny").card == "bpe-tiny"


class Flat(nn.Module):
    """A codebook of one's own."""

    vocab_size = 5

    def facts(self, image_size: int) -> Facts:
        return Facts(vocab_size=5, grids=((2, 2),))

    def grids(self, height: int, width: int) -> tuple[tuple[int, int], ...]:
        return ((2, 2),)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images.new_zeros(len(images), 4, dtype=torch.int64)

    def decode(self, codes: torch.Tensor, grids: Any) -> torch.Tensor:
        pixels = codes.view(-1, 1, 2, 2).float() / 4
        return pixels.expand(-1, 3, -1, -1).repeat_interleave(16, 2).repeat_interleave(16, 3)


def test_an_object_takes_a_parts_place() -> None:
    mine = Flat()
    g = zoo.build("dalle-tiny", parts={"codebook": mine})
    assert g.parts["codebook"] is mine
    assert g.codebook is mine
    assert g.parts["prior"].vocab_size == 5
    assert g.ready["codebook"]
    assert not g.ready["prior"]


def test_a_part_that_the_zoo_built_counts_as_given() -> None:
    codebook = zoo.build("dvae-tiny")
    g = zoo.build("dalle-tiny", parts={"codebook": codebook})
    assert g.parts["codebook"] is codebook
    assert g.ready["codebook"]


def test_every_part_has_initial_weights_of_its_own() -> None:
    def weights(overrides: list[str], role: str, seed: int = 0) -> torch.Tensor:
        node, config = resolve_tree("dalle-tiny", overrides)
        part = build_system(node, config, seed=seed).parts[role]
        return torch.cat([p.detach().flatten() for p in part.parameters()])

    before = torch.get_rng_state()
    one = weights([], "prior")
    assert torch.equal(one, weights(["reranker=none"], "prior"))
    assert not torch.equal(one, weights([], "prior", seed=1))
    assert torch.equal(before, torch.get_rng_state())


def test_unknown_names_of_every_kind() -> None:
    with pytest.raises(UnknownName, match="did you mean 'dvae-tiny'"):
        zoo.build("dvae-tyni")
    with pytest.raises(ConfigError, match="did you mean 'vocab_size'"):
        zoo.build("dvae-tiny", overrides=["vocab_sise=2"])
    with pytest.raises(UnknownName, match="dataset 'shaeps' is unknown; did you mean 'shapes'"):
        open_dataset("shaeps", size=16)


def test_code_that_a_spec_names_and_that_is_not_there_is_the_plugins_fault(make_plugin: Callable[..., Plugins]) -> None:
    code = """
        from zoo.hookspecs import hookimpl
        from zoo.specs import ModelSpec
        ZOO_API = 1

        @hookimpl
        def zoo_specs():
            build = "acme_gone.model:Model"
            variants = {"x": "zoo_dvae.configs:dvae_tiny"}
            return [ModelSpec(interface="codebook", config="zoo_dvae.configs:Dvae", build=build, variants=variants)]
    """
    card = '[models."acme/gone"]\nplugin = "acme_gone"\nvariant = "x"\nkind = "codebook"\nsummary = "x"'
    make_plugin("acme_gone", code, card)
    with pytest.raises(
        PluginFailed, match=r"'acme_gone' \(acme-gone 1\.0\): 'acme_gone\.model:Model' cannot be imported"
    ):
        zoo.build("acme/gone")


def saved(path: Path) -> nn.Module:
    part = zoo.build("dvae-tiny")
    save_tensors(path, part.state_dict())
    return part


def test_weights_by_path(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    first = saved(path)
    second = zoo.build("dvae-tiny", weights=str(path))
    for name, x in first.state_dict().items():
        assert torch.equal(x, second.state_dict()[name])


@pytest.mark.parametrize("damage", ["truncate", "foreign", "other-model", "text"])
def test_bad_weight_files_are_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "w.safetensors"
    saved(path)
    if damage == "truncate":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "foreign":
        save_tensors(path, {"x": torch.zeros(3)})
    elif damage == "other-model":
        save_tensors(path, zoo.build("dvae-tiny", overrides=["vocab_size=16"]).state_dict())
    else:
        path.write_text("not weights at all, only words, and enough of them")
    before = path.read_bytes()
    with pytest.raises(BadWeights) as error:
        zoo.build("dvae-tiny", weights=str(path))
    assert "w.safetensors" in str(error.value)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def card(path: Path, digest: str, uri: str | None = None) -> str:
    return f"""
    [models."acme/dvae"]
    plugin = "zoo_dvae"
    variant = "dvae-tiny"
    kind = "codebook"
    summary = "with weights"

    [[models."acme/dvae".weights]]
    tag = "v1"
    uri = "{uri or path.as_uri()}"
    sha256 = "{digest}"
    bytes = {path.stat().st_size}
    source = "a test"
    """


def test_weights_of_a_card_are_verified(tmp_path: Path, make_plugin: Callable[..., Plugins]) -> None:
    path = tmp_path / "w.safetensors"
    first = saved(path)
    make_plugin("acme_good", "ZOO_API = 1", card(path, sha256(path)))
    second = zoo.build("acme/dvae", weights="v1")
    assert torch.equal(first.encoder.input.weight, second.encoder.input.weight)
    with pytest.raises(UnknownName, match="weights of 'acme/dvae' 'v2' is unknown; did you mean 'v1'"):
        zoo.build("acme/dvae", weights="v2")


def test_a_digest_that_does_not_match_is_refused(tmp_path: Path, make_plugin: Callable[..., Plugins]) -> None:
    path = tmp_path / "w.safetensors"
    saved(path)
    make_plugin("acme_bad", "ZOO_API = 1", card(path, "0" * 64))
    with pytest.raises(BadWeights, match=r"sha256 is .* and should be 0000"):
        zoo.build("acme/dvae", weights="v1")


def test_a_plugin_fetches_what_the_core_cannot(
    tmp_path: Path, make_plugin: Callable[..., Plugins], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "w.safetensors"
    first = saved(path)
    code = f"""
        import shutil
        from zoo.hookspecs import hookimpl
        ZOO_API = 1

        @hookimpl
        def zoo_fetch(uri, dest):
            if uri == "acme://w":
                return shutil.copy({str(path)!r}, dest)
    """
    make_plugin("acme_fetch", code, card(path, sha256(path), "acme://w"))
    second = zoo.build("acme/dvae", weights="v1")
    assert torch.equal(first.encoder.input.weight, second.encoder.input.weight)


def test_weights_are_of_one_part() -> None:
    with pytest.raises(BadWeights, match="weights are of one part"):
        zoo.build("dalle-tiny", weights="anything")

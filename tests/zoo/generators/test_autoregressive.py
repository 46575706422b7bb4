"""Whole systems: what is asked, what comes back, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.errors import ConfigError, NotInstalled, NotReady, PartMismatch
from zoo.interfaces import Batch, Cond
from zoo.nn.sampling import check_guidance
from zoo.parts import Facts, Grid
from zoo.registry import build_system
from zoo.resolution import resolve_tree
from zoo.rng import Rng
from zoo.testing.kit import Pictures, stir

SIZE, K, CELLS = 16, 8, 4


class Blocks(nn.Module):
    """A codebook of four flat quarters in K greys; it counts what it encodes."""

    vocab_size = K
    encoded = 0

    def facts(self, image_size: int) -> Facts:
        return Facts(vocab_size=K, grids=((2, 2),))

    def grids(self, height: int, width: int) -> tuple[Grid, ...]:
        return ((2, 2),)

    def encode(self, images: Tensor) -> Tensor:
        self.encoded += 1
        cells = nn.functional.adaptive_avg_pool2d(images.mean(1), 2).flatten(1)
        return (cells * (K - 1)).round().long()

    def decode(self, codes: Tensor, grids: tuple[Grid, ...]) -> Tensor:
        cells = codes.view(-1, 1, 2, 2).float() / (K - 1)
        return nn.functional.interpolate(cells, (SIZE, SIZE)).expand(-1, 3, -1, -1)


class Echo(nn.Module):
    """A prior that draws uniformly and remembers what it was asked."""

    vocab_size, grids, length, causal = K, ((2, 2),), CELLS, True

    class config:
        reads, classes, cond_drop = "nothing", 3, 0.0

    def __init__(self, reads: str) -> None:
        super().__init__()
        self.config = type("Config", (), {"reads": reads, "classes": 3, "cond_drop": 0.0})()
        self.asked: list[dict[str, Any]] = []

    def facts(self, image_size: int) -> Facts:
        return Facts()

    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        return torch.zeros(*codes.shape, K)

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> dict[str, Tensor]:
        return {"loss": torch.zeros(())}

    def sample(self, cond: Cond, *, batch: int, rng: Rng, prefix: Tensor | None = None, **settings: Any) -> Tensor:
        check_guidance(settings["guidance"], 0.0)
        self.asked.append({"cond": cond, "batch": batch, "prefix": prefix, **settings})
        drawn = rng.integers(K, CELLS)
        return drawn if prefix is None else torch.where(prefix >= 0, prefix, drawn)


class Brightest(nn.Module):
    """A reranker that likes bright pictures, whatever the caption."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def score(self, images: Tensor, texts: list[str]) -> Tensor:
        self.texts += texts
        return images.mean((1, 2, 3))


def system(reads: str = "nothing", **parts: Any) -> Any:
    """Return a system of fakes; a tokenizer where captions are read."""
    overrides = [f"image_size={SIZE}"]
    if reads != "ids":
        overrides.append("tokenizer=none")
    given = {"codebook": Blocks(), "prior": Echo(reads), "reranker": Brightest(), **parts}
    g = zoo.build("dalle-tiny", parts=given, overrides=overrides)
    if reads == "ids":
        g.parts["tokenizer"].fit(Pictures(SIZE), seed=0)
        g.mark_ready("tokenizer")
    return g


def test_shape_order_and_seed() -> None:
    g = system()
    images = g.generate([None, None, None], images_per_prompt=2, seed=1)
    assert images.shape == (6, 3, SIZE, SIZE)
    assert torch.equal(images, g.generate([None] * 3, 2, seed=1))
    assert not torch.equal(images, g.generate([None] * 3, 2, seed=2))
    assert torch.equal(images[2:4], g.generate([None] * 2, 2, seed=1)[2:])
    more = g.generate([None] * 3, 5, seed=1).unflatten(0, (3, 5))
    assert torch.equal(images, more[:, :2].flatten(0, 1))


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
def test_chunks_change_nothing(chunk: int) -> None:
    g = system()
    images = g.generate([None] * 3, 3, seed=4, chunk=chunk)
    assert torch.equal(images, g.generate([None] * 3, 3, seed=4))
    assert max(call["batch"] for call in g.prior.asked) <= max(chunk, 9)


def test_rerank_returns_the_best_first() -> None:
    g = system("ids")
    every = g.generate(["a red circle", "a blue square"], 6, seed=3).unflatten(0, (2, 6))
    best = g.generate(["a red circle", "a blue square"], 2, rerank=6, seed=3).unflatten(0, (2, 2))
    for i in range(2):
        order = every[i].mean((1, 2, 3)).argsort(descending=True, stable=True)[:2]
        assert torch.equal(best[i], every[i][order])
    assert g.reranker.texts == ["a red circle"] * 6 + ["a blue square"] * 6


def test_rerank_in_chunks() -> None:
    g = system()
    whole = g.generate([None] * 2, 2, rerank=5, seed=3)
    assert torch.equal(whole, g.generate([None] * 2, 2, rerank=5, seed=3, chunk=3))


def test_settings_come_from_the_system_unless_given() -> None:
    g = system()
    g.generate([None])
    g.generate([None], temperature=0.5, top_k=3, top_p=0.9)
    first, second = g.prior.asked
    own = g.config.sampling
    assert (first["temperature"], first["top_k"], first["top_p"], first["guidance"]) == (
        own.temperature, own.top_k, own.top_p, own.guidance,
    )  # fmt: skip
    assert (second["temperature"], second["top_k"], second["top_p"]) == (0.5, 3, 0.9)
    with pytest.raises(ConfigError, match="guidance"):
        g.generate([None], guidance=2.0)


def test_a_prefix_goes_with_its_prompt() -> None:
    g = system()
    prefix = torch.tensor([[1, -1, -1, -1], [2, 3, -1, -1]])
    images = g.generate([None, None], 3, prefix=prefix)
    codes = g.codebook.encode(images)
    assert codes[:3, 0].tolist() == [1, 1, 1]
    assert codes[3:, :2].tolist() == [[2, 3]] * 3


def test_captions_reach_the_prior_and_none_is_dropped() -> None:
    g = system("ids")
    g.generate(["a red circle", None], 2)
    cond = g.prior.asked[0]["cond"]
    assert cond.drop.tolist() == [False, False, True, True]
    assert g.tokenizer.decode(cond.ids[:2]) == ["a red circle"] * 2


def test_labels_reach_the_prior() -> None:
    g = system("label")
    g.generate([2, None, 0])
    cond = g.prior.asked[0]["cond"]
    assert cond.label.tolist() == [2, 0, 0]
    assert cond.drop.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("reads", "prompt", "text"),
    [
        ("nothing", "a red circle", "reads no prompt; pass None for each picture, not 'a red circle'"),
        ("nothing", 3, "reads no prompt"),
        ("label", "a red circle", "reads labels 0 to 2; 'a red circle' is not one"),
        ("label", 3, "reads labels 0 to 2; 3 is not one"),
        ("label", -1, "-1 is not one"),
        ("label", True, "True is not one"),
        ("ids", 3, "reads captions; 3 is not a string"),
    ],
)
def test_a_prompt_of_the_wrong_kind_is_refused(reads: str, prompt: Any, text: str) -> None:
    with pytest.raises(ConfigError) as error:
        system(reads).generate([prompt])
    assert text in str(error.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"images_per_prompt": 0}, "at least 1"),
        ({"chunk": 0}, "at least 1"),
        ({"rerank": 2, "images_per_prompt": 3}, "rerank=2 draws fewer candidates than the 3 pictures"),
    ],
)
def test_counts_out_of_range_are_refused(settings: dict[str, int], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        system().generate([None], **settings)


def test_no_prompt_and_no_reranker_are_said() -> None:
    with pytest.raises(ConfigError, match="no prompt was given"):
        system().generate([])
    parts = {"codebook": Blocks(), "prior": Echo("nothing")}
    g = zoo.build("dalle-tiny", parts=parts, overrides=["tokenizer=none", "reranker=none", f"image_size={SIZE}"])
    with pytest.raises(ConfigError, match="has no reranker; set reranker=clip"):
        g.generate([None], rerank=4)


def test_a_prior_of_captions_needs_a_tokenizer() -> None:
    with pytest.raises(PartMismatch, match="has no tokenizer"):
        zoo.build("dalle-tiny", parts={"prior": Echo("ids")}, overrides=["tokenizer=none"])


def test_only_what_is_used_must_be_ready() -> None:
    g = zoo.build("dalle-tiny", parts={"codebook": Blocks(), "prior": Echo("nothing")}, overrides=["image_size=16"])
    assert g.generate([None]).shape == (1, 3, SIZE, SIZE)
    with pytest.raises(NotReady, match=r"reranker\.tokenizer, reranker;"):
        g.generate([None], rerank=2)


def test_the_one_who_asks_may_draw_from_untrained_parts() -> None:
    g = zoo.build("dalle-tiny", overrides=["prior.reads=nothing", "tokenizer=none"])
    with pytest.raises(NotReady):
        g.generate([None])
    assert g.generate([None], allow_untrained=True).shape == (1, 3, g.config.image_size, g.config.image_size)


def test_progress_is_told_and_training_mode_kept() -> None:
    g = system().train()
    told: list[tuple[int, int]] = []
    g.generate([None] * 3, 2, chunk=4, progress=lambda done, total: told.append((done, total)))
    assert told == [(4 * CELLS, 6 * CELLS), (6 * CELLS, 6 * CELLS)]
    assert g.training


def test_compiling_asks_the_parts_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    g = system()
    with pytest.raises(PartMismatch, match="no part of 'dalle-tiny' can compile its sampling"):
        g.compile_sampling()
    asked: list[bool] = []
    monkeypatch.setattr(Echo, "compile_sampling", lambda self: asked.append(True), raising=False)
    g.compile_sampling()
    assert asked == [True]
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    with pytest.raises(NotInstalled, match="no 'no-such-compiler': install it, or set CXX"):
        g.compile_sampling()


def test_stages_name_what_they_train() -> None:
    g = zoo.build("dalle-tiny")
    assert list(g.stages) == ["codebook", "prior", "reranker"]
    assert g.stages["prior"] == ("tokenizer", "prior")
    assert g.stages["codebook"] == ("codebook",)
    assert g.stages["reranker"] == ("reranker.tokenizer", "reranker")


def test_the_frozen_half_fills_what_is_missing_and_keeps_what_is_there() -> None:
    g = system("ids")
    read = Pictures(SIZE).read(range(3))
    assert g.encode("codebook", read) is read
    batch = g.encode("prior", read)
    assert torch.equal(batch.codes, g.codebook.encode(read.images))
    assert batch.ids.shape == batch.mask.shape == (3, g.tokenizer.length)
    count = g.codebook.encoded
    again = g.encode("prior", batch)
    assert again.codes is batch.codes
    assert again.ids is batch.ids
    assert g.codebook.encoded == count
    with pytest.raises(PartMismatch, match="reads captions and this data has none"):
        g.encode("prior", Batch(images=read.images))


def test_the_frozen_half_has_no_gradient() -> None:
    node, config = resolve_tree("dalle-tiny")
    g = build_system(node, config, seed=0)
    g.parts["tokenizer"].fit(Pictures(config.image_size), seed=0)
    stir(g.parts["prior"], 0)
    batch = g.encode("prior", Pictures(config.image_size).read(range(2)))
    g.loss("prior", batch, step=0, rng=Rng(0, range(2)))["loss"].backward()
    assert all(p.grad is None for p in g.codebook.parameters())
    assert any(p.grad is not None for p in g.prior.parameters())


def test_a_part_alone_draws_nothing() -> None:
    node, config = resolve_tree("dvae-tiny")
    solo = build_system(node, config, seed=0)
    with pytest.raises(PartMismatch, match="'dvae-tiny' is a codebook, not a whole system"):
        solo.generate([None])

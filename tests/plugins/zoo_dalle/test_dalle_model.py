"""The transformer: sizes, causality, pads, the loss, drops, precisions."""

import math

import attrs
import pytest
import torch
from torch.nn import functional as F

from zoo.errors import ConfigError, PartMismatch
from zoo.interfaces import Batch, Cond
from zoo.nn import across
from zoo.nn.residual import checkpoint_branches, residuals
from zoo.rng import Rng
from zoo_dalle import masks
from zoo_dalle.configs import DallePrior as Config
from zoo_dalle.configs import dalle_12b_prior, dalle_prior_tiny
from zoo_dalle.model import DallePrior

READS = ["ids", "label", "nothing"]


def rng(rows, seed=0):
    return Rng(seed, range(rows))


@pytest.mark.parametrize(("width", "heads", "count"), [
    (3968, 62, 12_092_178_432), (2688, 42, 5_549_064_192), (1920, 30, 2_831_155_200),
])  # fmt: skip
def test_transformer_matrices_of_the_paper(width, heads, count):
    with torch.device("meta"):
        model = DallePrior(attrs.evolve(dalle_12b_prior(), width=width, heads=heads))
    assert sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2) == count
    assert model.prefix.length + model.length == 1280
    if width == 3968:
        assert round(sum(p.numel() for p in model.parameters()) / 1e9, 2) == 12.29


WAYS = ("dense", "blocked", "banded")


def attend(way, monkeypatch):
    """Have layers computed in one way, whatever the grid; only row and column layers can be "blocked"."""
    codes = range(1 if way == "blocked" else 1 << 30, 1 << 30)
    least = 1 << 30 if way == "dense" else 1
    monkeypatch.setattr(masks, "BLOCKED", dict.fromkeys(masks.BLOCKED, codes))
    monkeypatch.setattr(masks, "BANDED_FROM", dict.fromkeys(masks.BANDED_FROM, least))


@pytest.fixture(params=WAYS)
def either_way(request, monkeypatch):
    """Run a test in every way, two of which only larger grids have otherwise."""
    attend(request.param, monkeypatch)


@pytest.mark.parametrize("reads", READS)
def test_causal_to_the_bit(build, inputs, reads, either_way):
    model = build(reads=reads, grids=((5, 3),))
    codes, cond = inputs(model, 2)
    with torch.inference_mode():
        before = model.logits(codes, cond)
        for j in range(model.length):
            changed = codes.clone()
            changed[:, j] = (changed[:, j] + 7) % model.vocab_size
            after = model.logits(changed, cond)
            assert torch.equal(before[:, : j + 1], after[:, : j + 1])
            if j + 1 < model.length:
                assert not torch.equal(before[:, j + 1], after[:, j + 1])


@pytest.mark.parametrize("n", [0, 1, 7, 15])
def test_leading_codes_give_leading_columns(build, inputs, n, either_way):
    model = build(grids=((5, 3),))
    codes, cond = inputs(model)
    with torch.inference_mode():
        some, full = model.logits(codes[:, :n], cond), model.logits(codes, cond)
    assert some.shape == (3, n, model.vocab_size)
    assert torch.allclose(some, full[:, :n], atol=1e-5)


def test_too_many_codes_are_refused(build, inputs):
    model = build()
    codes, cond = inputs(model)
    with pytest.raises(PartMismatch, match="17 codes"):
        model.logits(torch.cat((codes, codes[:, :1]), 1), cond)


def test_heads_of_zero_give_the_uniform_loss(build, inputs):
    model = build(text_vocab=16384, vocab_size=8192)
    for head in (model.head, model.caption_head.logits):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    codes, cond = inputs(model)
    losses = model.loss(Batch(codes=codes), cond, step=0, rng=rng(3))
    assert losses["loss"].item() == pytest.approx(9.09756, abs=1e-5)
    assert losses["loss"].item() == pytest.approx(math.log(16384) / 8 + 7 / 8 * math.log(8192), abs=1e-5)


def test_fresh_loss_is_nearly_uniform():
    torch.manual_seed(0)
    model = DallePrior(dalle_prior_tiny())
    codes = Rng(0, range(8)).integers(model.vocab_size, model.length)
    cond = Cond(ids=Rng(1, range(8)).integers(384, 32))
    image = model.loss(Batch(codes=codes), cond, step=0, rng=rng(8))["image"]
    assert image.item() == pytest.approx(math.log(model.vocab_size), abs=0.05)


def test_a_short_caption_uses_exactly_the_remaining_pads(build, inputs):
    model = build()
    codes, _ = inputs(model, 1)
    for length in range(7):
        mask = torch.arange(6)[None] < length
        model.zero_grad()
        model.loss(Batch(codes=codes), Cond(ids=torch.ones(1, 6).long(), mask=mask), step=0, rng=rng(1))[
            "loss"
        ].backward()
        used = model.prefix.pad.weight.grad.abs().sum(1) > 0
        assert torch.equal(used, ~mask[0])
    states = model.prefix(Cond(ids=torch.zeros(1, 6).long(), mask=torch.zeros(1, 6, dtype=torch.bool)), 1)[0]
    assert len(states.unique(dim=0)) == 6


def test_ids_under_the_padding_are_unseen(build, inputs):
    model = build()
    codes, cond = inputs(model)
    other = attrs.evolve(cond, ids=torch.where(cond.mask, cond.ids, (cond.ids + 1) % 20))
    batch = Batch(codes=codes)
    assert torch.equal(model.logits(codes, cond), model.logits(codes, other))
    one, two = (model.loss(batch, c, step=0, rng=rng(3)) for c in (cond, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def reference_loss(model, codes, cond):
    """Return (text, image): cross-entropies averaged over the batch's tokens, from states and heads directly."""
    states, at = model.states(codes[:, :-1], cond), model.prefix.length
    image = F.cross_entropy(model.head(states[:, at - 1 :]).flatten(0, 1), codes.flatten())
    total, count = 0.0, 0
    for row in range(len(codes)):
        for t in range(at):
            if cond.mask[row, t]:
                state = model.caption_head.first if t == 0 else states[row, t - 1]
                total += F.cross_entropy(model.caption_head.logits(state), cond.ids[row, t])
                count += 1
    return total / count, image


def test_loss_averages_each_kind_over_its_own_tokens(build, inputs, either_way):
    model = build(dtype=torch.float64, text_weight=0.25)
    codes, cond = inputs(model, 4)
    losses = model.loss(Batch(codes=codes), cond, step=0, rng=rng(4))
    text, image = reference_loss(model, codes, cond)
    assert torch.allclose(losses["text"], text)
    assert torch.allclose(losses["image"], image)
    assert torch.allclose(losses["loss"], 0.25 * text + 0.75 * image)
    assert not losses["text"].requires_grad


def test_shards_that_know_the_global_count_average_to_the_whole_batch(build, inputs, monkeypatch):
    model = build(dtype=torch.float64)
    codes, cond = inputs(model, 4)  # captions of 1, 2, 3 and 4 tokens
    whole = model.loss(Batch(codes=codes), cond, step=0, rng=rng(4))["loss"]
    monkeypatch.setattr(across, "sum", lambda x: torch.tensor([10, 4]))
    shards = [
        model.loss(Batch(codes=codes[i : i + 2]), cond[i : i + 2], step=0, rng=rng(4)[i : i + 2])["loss"]
        for i in (0, 2)
    ]
    assert torch.allclose(sum(shards) / 2, whole)


def test_micro_batches_of_equally_long_captions_average_to_the_whole_batch(build, inputs):
    model = build(dtype=torch.float64, cond_drop=0.5).train()
    codes, cond = inputs(model, 4)
    cond = attrs.evolve(cond, mask=torch.ones_like(cond.mask))
    source = rng(4, seed=13)
    drop = (source.fork("cond_drop").uniform() < 0.5).tolist()
    assert drop == [True, False, True, False]  # as many tokens in either half
    whole = model.loss(Batch(codes=codes), cond, step=0, rng=source)
    halves = [model.loss(Batch(codes=codes[s]), cond[s], step=0, rng=source[s]) for s in (slice(0, 2), slice(2, 4))]
    for name in ("loss", "text", "image"):
        assert torch.allclose(sum(half[name] for half in halves) / 2, whole[name]), name


def test_a_batch_without_any_token_has_no_text_loss(build, inputs):
    model = build()
    codes, cond = inputs(model)
    losses = model.loss(Batch(codes=codes), attrs.evolve(cond, mask=torch.zeros_like(cond.mask)), step=0, rng=rng(3))
    assert losses["text"] == 0
    assert losses["loss"].isfinite()


@pytest.mark.parametrize("reads", ["ids", "label"])
def test_dropped_rows_are_the_null_condition(build, inputs, reads):
    model = build(reads=reads)
    codes, cond = inputs(model, 4)
    drop = torch.tensor([True, False, True, False])
    mixed, kept = model.logits(codes, attrs.evolve(cond, drop=drop)), model.logits(codes, cond)
    null = model.logits(codes, Cond(drop=torch.ones(4, dtype=torch.bool)))
    assert torch.allclose(mixed[drop], null[drop], atol=1e-5)
    assert torch.allclose(mixed[~drop], kept[~drop], atol=1e-5)
    assert not torch.allclose(kept, null, atol=1e-2)


@pytest.mark.parametrize("reads", ["ids", "label"])
def test_training_drops_rows_by_their_own_numbers(build, inputs, reads):
    model = build(reads=reads, cond_drop=0.5, dtype=torch.float64)
    codes, cond = inputs(model, 16)
    drop = rng(16).fork("cond_drop").uniform() < 0.5
    assert 0 < drop.sum() < 16
    trained = model.train().loss(Batch(codes=codes), cond, step=0, rng=rng(16))["image"]
    model.eval()
    kept = model.loss(Batch(codes=codes), cond, step=0, rng=rng(16))["image"]
    by_hand = model.loss(Batch(codes=codes), attrs.evolve(cond, drop=drop), step=0, rng=rng(16))["image"]
    assert torch.allclose(trained, by_hand)
    assert not torch.allclose(trained, kept)


def test_without_a_caption_the_loss_is_the_images(build, inputs):
    for reads in ("label", "nothing"):
        model = build(reads=reads, dtype=torch.float64)
        codes, cond = inputs(model)
        losses = model.loss(Batch(codes=codes), cond, step=0, rng=rng(3))
        expected = F.cross_entropy(model.logits(codes, cond).flatten(0, 1), codes.flatten())
        assert torch.allclose(losses["loss"], expected)
        assert "text" not in losses


@pytest.mark.parametrize("reads", READS)
def test_every_parameter_gets_a_gradient_from_its_first_step(inputs, reads):
    torch.manual_seed(0)
    model = DallePrior(attrs.evolve(dalle_prior_tiny(), reads=reads, cond_drop=0.0, text_length=6))
    codes, cond = inputs(model, 4)
    model.loss(Batch(codes=codes), cond, step=0, rng=rng(4))["loss"].backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().sum() > 0, name


def test_blocks_change_neither_loss_nor_gradients(build, inputs, monkeypatch):
    model = build(dtype=torch.float64, grids=((5, 3),), cond_drop=0.0)
    codes, cond = inputs(model)
    results = []
    for way in WAYS:
        attend(way, monkeypatch)
        model.zero_grad()
        loss = model.loss(Batch(codes=codes), cond, step=0, rng=rng(3))["loss"]
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for other in results[1:]:
        assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(results[0], other, strict=True))


def test_all_residual_sums_are_named_branches(build):
    model = build(depth=3)
    names = [name for name, _ in residuals(model)]
    assert names == [f"blocks.{i}.{kind}" for i in range(3) for kind in ("attention", "mlp")]


def test_recomputed_branches_have_the_same_gradients(build, inputs):
    model = build(dtype=torch.float64, cond_drop=0.0).train()
    codes, cond = inputs(model)
    grads = []
    for on in (False, True):
        checkpoint_branches(model, on)
        model.zero_grad()
        model.loss(Batch(codes=codes), cond, step=0, rng=rng(3))["loss"].backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.allclose(a, b) for a, b in zip(*grads, strict=True))


def test_what_a_prior_reads_must_be_there(build, inputs):
    codes, cond = inputs(build())
    with pytest.raises(PartMismatch, match="reads caption ids"):
        build().logits(codes, Cond())
    with pytest.raises(PartMismatch, match="reads a label"):
        build(reads="label").logits(codes, cond)
    with pytest.raises(PartMismatch, match="9 positions"):
        build(text_length=7).logits(codes, Cond(ids=torch.zeros(3, 9).long()))
    with pytest.raises(PartMismatch, match="rows for a batch"):
        build().logits(codes, cond[:2])
    with pytest.raises(PartMismatch, match="16 codes"):
        build().loss(Batch(), cond, step=0, rng=rng(3))


def test_several_grids_are_refused_in_one_sentence():
    with pytest.raises(PartMismatch, match="one code grid, and the codebook has 8x8, 4x4"):
        attrs.evolve(dalle_prior_tiny(), grids=((8, 8), (4, 4)))


def test_what_other_parts_decide_must_be_bound():
    for fields in ({"vocab_size": None}, {"grids": None}, {"text_vocab": None}, {"reads": "label", "classes": None}):
        with pytest.raises(ConfigError):
            DallePrior(attrs.evolve(dalle_prior_tiny(), **fields))


@pytest.mark.parametrize("fields", [
    {"heads": 5}, {"conv_kernel": 4}, {"cond_drop": 1.0}, {"text_weight": 1.0}, {"depth": 0}, {"grids": ((0, 4),)},
])  # fmt: skip
def test_fields_out_of_range_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Config(**fields)


def test_autocast_leaves_embeddings_norms_and_heads_in_full_precision(build, inputs, either_way):
    model = build(depth=3)
    codes, cond = inputs(model)
    seen = {}

    def watch(name, module):
        module.register_forward_hook(lambda m, i, out: seen.__setitem__(name, out.dtype))

    for name, module in model.named_modules():
        watch(name, module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.loss(Batch(codes=codes), cond, step=0, rng=rng(3))
    losses["loss"].backward()
    assert losses["loss"].dtype == torch.float32
    assert seen["blocks.0.attention.branch.qkv"] == torch.bfloat16
    for name in ("codes", "prefix", "blocks.1", "norm", "head", "caption_head", "caption_head.logits"):
        assert seen[name] == torch.float32, name
    exact = model.loss(Batch(codes=codes), cond, step=0, rng=rng(3))["loss"]
    assert torch.allclose(losses["loss"], exact, rtol=0.02)


def test_a_model_born_on_meta_works_once_filled(build, inputs):
    model = build()
    with torch.device("meta"):
        empty = DallePrior(model.config)
    empty.logits(torch.zeros(1, 16, device="meta").long(), Cond(ids=torch.zeros(1, 6, device="meta").long()))
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    codes, cond = inputs(model)
    assert torch.equal(model.logits(codes, cond), empty.eval().logits(codes, cond))


def test_training_follows_sampling(build, inputs, either_way):
    model = build().train()
    codes, cond = inputs(model)
    model.sample(cond, batch=3, rng=rng(3))
    model.loss(Batch(codes=codes), cond, step=0, rng=rng(3))["loss"].backward()

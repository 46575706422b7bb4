"""ImageGPT's transformer: sizes, initial state, what sees what, both objectives, features, sampling."""

import math

import attrs
import pytest
import torch

import zoo
from zoo.compiling import check_compiler
from zoo.cost import Widths
from zoo.errors import CannotSample, ConfigError, NotInstalled, PartMismatch
from zoo.interfaces import Batch, Cond
from zoo.nn.frozen import Frozen
from zoo.nn.residual import checkpoint_branches, residuals
from zoo.nn.rms import RmsNorm
from zoo.resolution import resolve_tree
from zoo.rng import Rng
from zoo.testing.kit import case_of
from zoo.testing.measured import saved_bytes
from zoo_imagegpt import variants
from zoo_imagegpt.compiled import CompiledDecoder
from zoo_imagegpt.configs import ImageGptPrior as Config
from zoo_imagegpt.decode import Decoder
from zoo_imagegpt.layers import EPS
from zoo_imagegpt.masked import keep_mask
from zoo_imagegpt.model import ImageGptPrior

PRINTED = {
    "imagegpt-s": 76_571_648,
    "imagegpt-m": 455_157_760,
    "imagegpt-l": 1_362_250_752,
    "imagegpt-xl": 6_801_438_720,
    "imagegpt-xl-64": 6_810_875_904,
}


@pytest.mark.parametrize("name", PRINTED)
def test_parameters_are_the_printed_ones_to_the_unit(name):
    assert zoo.info(name)["params"] == PRINTED[name]


@pytest.mark.parametrize(("size", "length"), [(32, 1024), (48, 2304), (64, 4096)])
def test_the_picture_decides_the_length(size, length):
    _, config = resolve_tree("imagegpt-s", [f"image_size={size}"])
    assert config.prior.length == length


def test_multiplications_of_a_forward_pass_are_the_papers_plus_the_head():
    config = variants.imagegpt_l_bert_prior()  # attends to all, as the count of the paper's size assumes
    n, d = 1024, 1536
    expected = 48 * (12 * n * d**2 + 2 * n**2 * d)
    assert expected == pytest.approx(1.546e12, rel=1e-3)
    assert config.cost().flops // 2 == expected + n * d * 512


def test_a_new_model_gives_every_code_the_same_chance():
    config = attrs.evolve(variants.imagegpt_prior_tiny(), vocab_size=512)
    for objective in ("ar", "bert"):
        model = ImageGptPrior(attrs.evolve(config, objective=objective)).train()
        for seed in range(2):
            codes = Rng(seed, range(4)).integers(512, 64)
            loss = model.loss(Batch(codes=codes), Cond(), step=0, rng=Rng(seed, range(4)))["loss"]
            assert float(loss.detach()) == pytest.approx(math.log(512), abs=1e-6)


def test_initial_spreads_are_the_codes():
    torch.manual_seed(0)
    model = ImageGptPrior(Config(width=256, depth=4, heads=4, vocab_size=512, grids=((32, 32),)))
    block = model.blocks[0]
    expected = {
        model.token: 0.02, model.position: 0.01, model.start: 0.02, block.attention.branch.qkv: 256**-0.5,
        block.attention.branch.out: (256 * 4) ** -0.5, block.mlp.branch.up: 0.02, block.mlp.branch.down: 0.02,
    }  # fmt: skip
    for module, std in expected.items():
        few = module.weight.numel() < 1000
        assert float(module.weight.detach().std()) == pytest.approx(std, rel=0.2 if few else 0.02)
    assert not model.head.weight.any()
    assert all("bias" not in name for name, _ in model.named_parameters())


def test_the_norm_does_not_centre():
    norm, x = RmsNorm(16, EPS), torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(norm(x + 3), norm(x), atol=0.1)
    assert torch.allclose(norm(1000 * x), norm(100 * x), atol=1e-5)
    assert torch.allclose(norm(x), x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5), atol=1e-6)


def test_the_activation_is_the_quick_one(build):
    mlp = build(width=2, heads=1, mlp_ratio=1).blocks[0].mlp.branch
    with torch.no_grad():
        mlp.norm.weight.fill_(1)
        mlp.up.weight.copy_(torch.eye(2))
        mlp.down.weight.copy_(torch.eye(2))
        y = mlp(torch.tensor([[[1.0, 1.0]]]) * 1e3)  # normed to 1
    assert y.flatten().tolist() == pytest.approx([0.845796] * 2, abs=1e-5)


def test_a_column_sees_earlier_codes_to_the_bit(build, codes):
    model = build()
    given = codes(model)
    with torch.inference_mode():
        before = model.logits(given, Cond())
        for i in range(model.length):
            other = given.clone()
            other[:, i] = (other[:, i] + 1) % model.vocab_size
            after = model.logits(other, Cond())
            assert torch.equal(before[:, : i + 1], after[:, : i + 1])
            assert i + 1 == model.length or not torch.equal(before[:, i + 1], after[:, i + 1])
        assert torch.equal(before[0, 0], before[1, 0])  # the start vector alone decides the first


def test_a_masked_column_sees_all_others(build, codes):
    model = build(objective="bert")
    given = codes(model)
    given[:, 5] = -1
    with torch.inference_mode():
        before = model.logits(given, Cond())
        for i in (0, model.length - 1):
            other = given.clone()
            other[:, i] = (other[:, i] + 1) % model.vocab_size
            assert not torch.equal(before[:, 5], model.logits(other, Cond())[:, 5])


def test_a_masked_embedding_is_its_position_alone(build, codes):
    model = build(objective="bert")
    given = codes(model)
    given[:, 3] = -1
    assert torch.equal(model.embed(given, Cond())[0, 3], model.position.weight[3])


def test_the_masked_loss_has_a_gradient_from_masked_codes_alone(build, codes):
    model = build(objective="bert", mask=0.3)
    given, rng = codes(model), Rng(1, range(3))
    keep = model.keep(rng)
    assert keep.any()
    assert not keep.all()
    logits = model.logits(given.masked_fill(~keep, -1), Cond()).detach().requires_grad_()
    model.logits = lambda *_: logits
    loss = model.loss(Batch(codes=given), Cond(), step=0, rng=rng)["loss"]
    loss.backward()
    assert torch.equal(logits.grad.abs().sum(-1) > 0, ~keep)
    nats = -logits.log_softmax(-1).gather(-1, given[..., None])[..., 0]
    rows = [row[~kept].mean() for row, kept in zip(nats, keep, strict=True)]  # each picture by itself
    assert torch.allclose(loss, torch.stack(rows).mean())


def test_fifteen_of_a_hundred_codes_are_masked():
    keep = keep_mask(Rng(0, range(320)), 1024, 0.15)
    assert float((~keep).sum(-1).float().mean()) == pytest.approx(153.6, abs=2)
    assert torch.equal(keep_mask(Rng(0, [7]), 1024, 0.15)[0], keep[7])


def test_a_masked_prior_cannot_sample_and_says_why(build):
    with pytest.raises(CannotSample, match=r"masked codes.*no order"):
        build(objective="bert").sample(Cond(), batch=1, rng=Rng(0, [0]))


def test_a_masked_prior_has_no_start_and_reads_no_label():
    with pytest.raises(ValueError, match="start vector"):
        Config(objective="bert", reads="label")
    assert variants.imagegpt_s_bert_prior().cost().params == PRINTED["imagegpt-s"] - 512


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_features_are_means_of_what_the_attentions_read(build, codes, objective):
    model = build(objective=objective, dtype=torch.float64)
    given = codes(model)
    read = []
    norms = [block.attention.branch.norm for block in model.blocks]
    hooks = [norm.register_forward_hook(lambda _m, _x, y: read.append(y)) for norm in (*norms, model.norm)]
    with torch.no_grad():
        model.logits(given, Cond())
        for hook in hooks:
            hook.remove()
        found = model.features(given, Cond())
    assert len(found) == model.config.depth + 1 == len(read)
    for x, y in zip(found, read, strict=True):
        assert x.shape == (3, model.config.width)
        assert torch.allclose(x, y.mean(1), atol=1e-12)


@pytest.mark.parametrize("objective", ["ar", "bert"])
def test_one_pass_has_the_loss_features_and_gradients_of_two(build, codes, objective):
    model = build(objective=objective, dtype=torch.float64, mask=0.3).train()
    batch, rng = Batch(codes=codes(model)), Rng(1, range(3))
    weight = torch.randn(model.config.width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shown = batch.codes if model.causal else batch.codes.masked_fill(~model.keep(rng), -1)  # as the loss masks them
    loss = model.loss(batch, Cond(), step=0, rng=rng)["loss"]
    features = model.features(shown, Cond())[-1]
    two = torch.autograd.grad(loss + (features @ weight).square().sum(), list(model.parameters()))
    passes = []
    model.blocks[0].register_forward_hook(lambda *_: passes.append(1))
    losses, told = model.loss_and_features(batch, Cond(), step=0, rng=rng)
    assert len(passes) == 1
    assert torch.allclose(losses["loss"], loss, rtol=0, atol=1e-12)
    assert torch.allclose(told, features, rtol=0, atol=1e-12)
    one = torch.autograd.grad(losses["loss"] + (told @ weight).square().sum(), list(model.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-12) for a, b in zip(one, two, strict=True))


def test_features_of_masked_codes_are_a_masked_priors_alone(build, codes):
    model, causal = build(objective="bert"), build()
    given = codes(model)
    masked = given.masked_fill(~model.keep(Rng(0, range(3))), -1)
    with torch.no_grad():
        assert not torch.equal(model.features(masked, Cond())[-1], model.features(given, Cond())[-1])
    with pytest.raises(PartMismatch, match="masks no codes"):
        causal.features(masked, Cond())


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("given", [0, 1, 7, 16])
def test_cached_steps_equal_full_passes(build, codes, given, guidance):
    model = build(dtype=torch.float64, reads="label", classes=4, cond_drop=0.1)
    prefix = codes(model)
    prefix[:, given:] = -1
    cond = Cond(label=torch.tensor([0, 3, 1]))
    drawn = model.sample(cond, batch=3, rng=Rng(0, range(3)), prefix=prefix, temperature=0.0, guidance=guidance)
    with torch.inference_mode():
        logits = model.logits(drawn, cond)
        null = model.logits(drawn, attrs.evolve(cond, drop=torch.ones(3, dtype=torch.bool)))
    best = (null + guidance * (logits - null)).argmax(-1)
    assert torch.equal(drawn[:, :given], prefix[:, :given])
    assert torch.equal(drawn[:, given:], best[:, given:])


@pytest.fixture(params=["step", "spelled out", "compiled"])
def decoder(request, monkeypatch):
    """Each of the decoders, also the compiled one as it is before it is compiled."""
    if request.param == "step":
        return Decoder
    if request.param == "spelled out":
        monkeypatch.setattr(Frozen, "step", lambda self, rows, model, make: make())
        return CompiledDecoder
    try:
        check_compiler("cpu")
    except NotInstalled as missing:
        pytest.skip(str(missing))
    return CompiledDecoder


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-5), (torch.float64, 1e-12)])
def test_a_cached_step_has_the_logits_of_a_full_pass(build, codes, decoder, dtype, near):
    model = build(dtype)
    given = codes(model)
    with torch.inference_mode():
        for first in (4, 0):
            full, made = model.logits(given, Cond()), decoder(model, 3)
            assert torch.allclose(made.start(given[:, :first], Cond()), full[:, first], rtol=0, atol=near)
            for i in range(first, model.length - 1):
                assert torch.allclose(made.step(given[:, i], i), full[:, i + 1], rtol=0, atol=near)


def test_compiled_samples_are_the_others(build, decoder):
    model = build(reads="label", classes=3, cond_drop=0.1)
    model.compiled = decoder is CompiledDecoder
    cond = Cond(label=torch.tensor([0, 2]))
    drawn = model.sample(cond, batch=2, guidance=2.0, rng=Rng(0, range(2)))
    model.compiled = False
    assert torch.equal(drawn, model.sample(cond, batch=2, guidance=2.0, rng=Rng(0, range(2))))


def test_a_compiled_step_follows_the_weights(build, decoder):
    if decoder is not CompiledDecoder:
        pytest.skip("of the compiled step")
    model = build()
    drawn = []
    for sign in (1, -1):  # the weights are constants of the graph
        with torch.no_grad():
            model.blocks[0].mlp.branch.up.weight.mul_(sign)
        for model.compiled in (False, True):
            drawn.append(model.sample(Cond(), batch=2, rng=Rng(0, range(2))))
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_nearly_the_same(build, codes, dtype):
    model, half = build(), build(dtype)
    with torch.no_grad():
        for each in (model, half):
            each.token.weight.mul_(1000)  # squares that half precision cannot hold
        given = codes(model)
        full, decoder = model.logits(given, Cond()), Decoder(half, 3)
        assert torch.allclose(half.logits(given, Cond()).float(), full, atol=0.2)
        assert torch.allclose(decoder.start(given[:, :4], Cond()).float(), full[:, 4], atol=0.2)
        assert torch.allclose(decoder.step(given[:, 4], 4).float(), full[:, 5], atol=0.2)


def test_a_label_moves_the_start_and_a_dropped_one_is_the_null_class(build, codes):
    model = build(reads="label", classes=4)
    given = codes(model)
    with torch.inference_mode():
        one, other = (model.logits(given, Cond(label=torch.full((3,), label))) for label in (0, 3))
        dropped = model.logits(given, Cond(label=torch.zeros(3, dtype=torch.int64), drop=torch.ones(3) > 0))
        null = model.logits(given, Cond(drop=torch.ones(3) > 0))
    assert not torch.allclose(one, other)
    assert torch.equal(dropped, null)
    with pytest.raises(PartMismatch, match="reads a label"):
        model.logits(given, Cond())
    with pytest.raises(PartMismatch, match="2 rows for a batch of 3"):
        model.logits(given, Cond(label=torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ConfigError, match="cond_drop"):
        model.sample(Cond(label=torch.zeros(1, dtype=torch.int64)), batch=1, rng=Rng(0, [0]), guidance=2.0)


def test_training_drops_labels_as_often_as_said(build, codes):
    model = build(reads="label", classes=4, cond_drop=0.5).train()
    dropped = model._drop(Cond(label=torch.zeros(400, dtype=torch.int64)), 400, Rng(0, range(400)), torch.device("cpu"))
    assert 150 < int(dropped.drop.sum()) < 250


def test_recomputed_branches_give_the_same_gradients(build, codes):
    model = build().train()
    given = codes(model)

    def gradients():
        model.zero_grad()
        model.loss(Batch(codes=given), Cond(), step=0, rng=Rng(0, range(3)))["loss"].backward()
        return [p.grad.clone() for p in model.parameters()]

    plain = gradients()
    checkpoint_branches(model)
    assert len(list(residuals(model))) == 2 * model.config.depth
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(), strict=True))


def test_several_grids_are_one_sequence(build, codes):
    model = build(grids=((2, 2), (4, 4)))
    assert model.length == 20
    drawn = model.sample(Cond(), batch=2, rng=Rng(0, range(2)))
    assert drawn.shape == (2, 20)
    with pytest.raises(PartMismatch, match="20"):
        model.logits(torch.zeros(1, 21, dtype=torch.int64), Cond())
    with pytest.raises(PartMismatch, match="learns from 20 codes"):
        model.loss(Batch(codes=torch.zeros(1, 16, dtype=torch.int64)), Cond(), step=0, rng=Rng(0, [0]))


def test_what_other_parts_decide_must_be_known():
    with pytest.raises(ConfigError, match="codebook's sizes"):
        ImageGptPrior(Config())
    with pytest.raises(ConfigError, match="number of classes"):
        ImageGptPrior(Config(vocab_size=4, grids=((2, 2),), reads="label"))
    with pytest.raises(ValueError, match="'heads' must divide"):
        Config(width=10, heads=4)


@pytest.mark.parametrize("name", ["imagegpt-prior-tiny", "imagegpt-prior-tiny-bert"])
def test_the_plan_is_what_autograd_keeps(name):
    case = case_of(name)
    part = case.of(case.fresh()).train()
    batch, cond = case.batch(part, 4), case.cond(4)

    def loss():
        return part.loss(batch, cond, step=0, rng=case.rng(rows=4))["loss"]

    planned = case.config.cost(4).activations(4, Widths(4, 4, 4), recompute=False)
    assert planned == pytest.approx(saved_bytes(part, loss), rel=0.02)
    checkpoint_branches(part)
    cost = case.config.cost(4)
    outside = 4 * (cost.kept.bytes(Widths(4, 4, 4)) + sum(4 * block.entry for block in cost.blocks))
    assert outside == pytest.approx(saved_bytes(part, loss), rel=0.02)

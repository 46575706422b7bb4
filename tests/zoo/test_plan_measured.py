"""What is planned of a part, against torch: its FLOP counter, and the tensors autograd really saves."""

import attrs
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import zoo
from zoo.catalogue import catalogue
from zoo.cost import Widths
from zoo.nn.residual import checkpoint_branches
from zoo.rng import Rng
from zoo.testing.kit import case_of, one_thread
from zoo.testing.measured import saved_bytes

FP32 = Widths(4, 4, 4)
ROWS = 4
LONG = " above a very small blue square beside it" * 8
"""Makes every caption as long as the tokenizer allows: the plan takes them so."""

TRAINED = [
    "clip-text-tiny",
    "clip-tiny",
    "dalle-prior-tiny",
    "diffussm-denoiser-tiny",
    "dit-denoiser-tiny",
    "dvae-tiny",
    "imagegpt-prior-tiny",
    "imagen-base-tiny",
    "imagen-sr-tiny",
    "kl-tiny",
    "pixelcnn-tiny",
    "t5-tiny",
    "vae",
    "vqgan-tiny",
    "vqvae-fsq",
    "vqvae-sonnet",
    "vqvae-tiny",
]
CAUSAL = ["clip-text-tiny", "clip-tiny", "dalle-prior-tiny", "imagegpt-prior-tiny"]
"""Of which, those with attention under a mask."""


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def loss_of(case, part, rows=ROWS):
    """Return a function that computes the training loss of `rows` samples."""
    if case.interface == "text_encoder":  # it has none: another part's reaches all of its embeddings
        ids = Rng(0, range(rows)).integers(case.config.text_vocab, case.config.text_length)
        return lambda: part.encode(ids, torch.ones_like(ids, dtype=torch.bool)).sum()
    batch, cond = case.batch(part, rows), case.cond(rows)
    if case.interface == "reranker":
        batch = attrs.evolve(batch, texts=tuple(text + LONG for text in batch.texts))
    if cond.text_mask is not None:
        cond = attrs.evolve(cond, text_mask=torch.ones_like(cond.text_mask))
    return lambda: part.loss(batch, cond, step=0, rng=case.rng(rows=rows))["loss"]


def trained(name):
    case = case_of(name)
    return case, case.of(case.fresh()).train()


def test_every_family_is_measured():
    """Each config class that is trained has a card in the list."""
    trained = {type(zoo.resolve(c.name)) for c in catalogue().cards.values() if c.origin == "image-zoo"}
    classes = {cls for cls in trained if "train" in attrs.fields_dict(cls)}
    assert {type(zoo.resolve(name)) for name in TRAINED} == classes


@pytest.mark.filterwarnings("ignore:caption truncated")
@pytest.mark.parametrize("name", TRAINED)
def test_kept_values_are_what_autograd_saves(name):
    case, part = trained(name)
    cost = case.config.cost(ROWS)
    planned = cost.activations(ROWS, FP32, recompute=False)
    measured = saved_bytes(part, loss_of(case, part))
    assert planned == pytest.approx(measured, rel=0.02)


@pytest.mark.filterwarnings("ignore:caption truncated")
@pytest.mark.parametrize("name", TRAINED)
def test_recomputed_branches_keep_their_inputs_alone(name):
    case, part = trained(name)
    cost = case.config.cost(ROWS)
    checkpoint_branches(part)
    outside = ROWS * (cost.kept.bytes(FP32) + sum(4 * block.entry for block in cost.blocks))
    assert outside == pytest.approx(saved_bytes(part, loss_of(case, part)), rel=0.02)
    inner = cost.activations(ROWS, FP32, recompute=True) - outside
    assert 0 <= inner <= ROWS * max(block.kept.bytes(FP32) for block in cost.blocks)


@pytest.mark.filterwarnings("ignore:caption truncated")
@pytest.mark.parametrize("name", [n for n in TRAINED if n not in CAUSAL])
def test_flops_are_those_of_torchs_counter(name):
    case, part = trained(name)
    loss = loss_of(case, part)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # a fused one is not counted
        loss()
    assert ROWS * case.config.cost(ROWS).flops == counter.get_total_flops()


@pytest.mark.filterwarnings("ignore:caption truncated")
@pytest.mark.parametrize("name", CAUSAL)
def test_flops_of_attention_are_those_of_the_kept_keys(name):
    """The counter takes masked products for whole ones; they are the only batched products of these models."""
    case, part = trained(name)
    loss = loss_of(case, part)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss()
    whole = counter.get_flop_counts()["Global"][torch.ops.aten.bmm]
    rest = counter.get_total_flops() - whole
    assert whole > 0
    assert ROWS * case.config.cost(ROWS).flops == rest + 4 * ROWS * kept_products(name, case.config, part)


def kept_products(name, config, part):
    """Return width times the pairs of a query and a key that the masks show, over all layers, by counting them."""
    if name == "clip-text-tiny":
        return (config.layers - 1) * config.width * int(torch.ones(config.text_length, config.text_length).tril().sum())
    if name == "clip-tiny":
        tokens, patches = config.text_length, 1 + (config.image_size // config.patch) ** 2
        causal = int(torch.ones(tokens, tokens).tril().sum())
        return config.text_layers * config.text_width * causal + config.vision_layers * config.vision_width * patches**2
    if name == "imagegpt-prior-tiny":
        return config.depth * config.width * part.length * (part.length + 1) // 2
    length = part.prefix.length + part.length - 1
    masks = (part.masks.dense(kind, length, torch.device("cpu")) for kind in part.kinds)
    return config.width * sum(int(mask.sum()) for mask in masks)


@pytest.mark.parametrize("name", ["t5-tiny", "clip-text-tiny"])
def test_encoding_a_caption_costs_what_a_forward_pass_does(name):
    cost = case_of(name).config.cost()
    assert cost.encode == cost.flops > 0


def test_encoding_flops_are_those_of_encode():
    for name in ("dvae-tiny", "vqvae-tiny", "vqvae-fsq"):
        case = case_of(name)
        with FlopCounterMode(display=False) as counter:
            case.part.encode(case.images(ROWS))
        assert ROWS * case.config.cost().encode == counter.get_total_flops(), name


def test_bf16_keeps_what_is_planned():
    """Autocast keeps a copy of every weight it casts, beside the narrower values."""
    from zoo.planning.jobs import job_of
    from zoo.planning.memory import _casts

    case, part = trained("dalle-prior-tiny")
    cost, job = case.config.cost(ROWS), job_of(batch=ROWS, precision="bf16")
    planned = cost.activations(ROWS, job.widths, recompute=False) + _casts(cost, job)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        measured = saved_bytes(part, loss_of(case, part))
    assert planned == pytest.approx(measured, rel=0.1)

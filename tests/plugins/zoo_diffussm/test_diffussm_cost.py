"""What is planned of every kind of denoiser, against torch; the cards' own are in tests/zoo/test_plan_measured.py."""

import pytest
import torch
from attrs import evolve
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.cost import Widths
from zoo.interfaces import Batch, Cond
from zoo.nn.residual import checkpoint_branches
from zoo.rng import Rng
from zoo.testing.kit import stir
from zoo.testing.measured import saved_bytes
from zoo_diffussm import model
from zoo_diffussm.configs import DiffuSsm, DiT

FP32, ROWS = Widths(4, 4, 4), 4
SSM = DiffuSsm(width=16, depth=3, state=8, channels=3, size=(8, 8), bounded=False, classes=5)
ATTENTION = DiT(width=16, depth=2, heads=2, channels=3, size=(8, 8), bounded=False, classes=5)
TEXT = {"reads": "text", "text_width": 12, "text_length": 5}
CONFIGS = {
    "ssm": SSM,
    "uncompressed": evolve(SSM, shortening=1, variance="fixed", reads="nothing"),
    "forward": evolve(SSM, shortening=4, directions="forward", discretisation="bilinear"),
    "skips": evolve(SSM, skips="long", patch=2, positions="sincos"),
    "text": evolve(SSM, **TEXT),
    "enlarging": evolve(SSM, low=4),
    "label-prefix": evolve(SSM, prefix=True),
    "prefix": evolve(SSM, prefix=True, **TEXT),
    "dit": ATTENTION,
    "dit-patch-text": evolve(ATTENTION, variance="fixed", **TEXT),
    "dit-prefix": evolve(ATTENTION, prefix=True, patch=1, positions="none", **TEXT),
}


def build(config):
    torch.manual_seed(0)
    net = model.dit(config) if isinstance(config, DiT) else model.diffussm(config)
    stir(net, 0)
    return net


def loss_of(config, net):
    """Return a function that computes the loss of some rows."""
    rng = Rng(0, range(ROWS))
    dtype = net.head.project.weight.dtype
    z, text = rng.normal(3, 8, 8).to(dtype), rng.normal(5, 12).to(dtype)
    cond = Cond()
    low = {"low": torch.zeros_like(z), "low_level": torch.zeros(ROWS)} if config.low else {}
    if config.reads == "text":
        cond = Cond(text=text, text_mask=torch.ones(ROWS, 5, dtype=torch.bool))
    if config.reads == "label":
        cond = Cond(label=torch.zeros(ROWS, dtype=torch.int64), **low)
    return lambda: net.loss(Batch(z=z), cond, step=0, rng=rng)["loss"]


@pytest.mark.parametrize("name", CONFIGS)
def test_plan_is_what_torch_does(name):
    config = CONFIGS[name]
    net = build(config).train()
    loss, cost = loss_of(config, net), config.cost(ROWS)
    assert [(w.name, w.shape) for w in cost.weights] == [(n, tuple(p.shape)) for n, p in net.named_parameters()]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss()
    assert counter.get_total_flops() == ROWS * cost.flops
    assert cost.activations(ROWS, FP32, recompute=False) == pytest.approx(saved_bytes(net, loss), rel=0.02)
    checkpoint_branches(net)
    outside = ROWS * (cost.kept.bytes(FP32) + sum(4 * block.entry for block in cost.blocks))
    assert outside == pytest.approx(saved_bytes(net, loss), rel=0.02)


@pytest.mark.parametrize("name", ["ssm", "forward", "prefix", "dit"])
def test_recomputed_branches_change_no_gradient(name):
    config = CONFIGS[name]
    net = build(config).double().train()
    loss = loss_of(config, net)
    plain = torch.autograd.grad(loss(), [p for p in net.parameters() if p.requires_grad], allow_unused=True)
    checkpoint_branches(net)
    again = torch.autograd.grad(loss(), [p for p in net.parameters() if p.requires_grad], allow_unused=True)
    for a, b in zip(plain, again, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-12)

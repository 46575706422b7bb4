"""What is planned of every kind of denoiser, against torch; the cards' own are in tests/zoo/test_plan_measured.py."""

import pytest
import torch
from attrs import evolve
from imagen_small import SMALL, build
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.cost import Widths
from zoo.interfaces import Batch, Cond
from zoo.nn.residual import checkpoint_branches
from zoo.rng import Rng
from zoo.testing.measured import saved_bytes

FP32 = Widths(4, 4, 4)
CONFIGS = {
    **SMALL,
    "narrowed": evolve(SMALL["base"], text_channels=8, attention=(1, 2), sum_scale=0.7071, activation="gelu"),
    "group": evolve(SMALL["base"], text_channels=32, text_norm="group"),
    "learned": evolve(SMALL["base"], variance="learned", low=4),
    "label": evolve(SMALL["base"], reads="label", classes=3),
    "nothing": evolve(SMALL["self"], reads="nothing", low=None),
    "crop": evolve(SMALL["cross"], crop=16, size=(32, 32)),
}


def loss_of(config, model, rows=3):
    """Return a function that computes the loss of some rows."""
    side, rng = min(getattr(config, "crop", None) or 99, config.size[0]), Rng(0, range(rows))
    z = (rng.uniform(3, side, side) * 2 - 1).to(model.net.out.bias.dtype)
    low = {"low": torch.zeros_like(z), "low_level": torch.zeros(rows)} if config.low else {}
    text = rng.normal(5, 12)
    if config.reads == "text":
        low |= {"text": text, "text_mask": torch.ones(rows, 5, dtype=torch.bool)}
    cond = Cond(label=torch.zeros(rows, dtype=torch.int64) if config.reads == "label" else None, **low)
    return lambda: model.loss(Batch(z=z), cond, step=0, rng=rng)["loss"]


@pytest.mark.parametrize("name", CONFIGS)
def test_plan_is_what_torch_does(name):
    config = CONFIGS[name]
    model = build(config).float().train()
    loss, cost, rows = loss_of(config, model), config.cost(), 3
    assert [(w.name, w.shape) for w in cost.weights] == [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        loss()
    assert rows * cost.flops == counter.get_total_flops()
    assert cost.activations(rows, FP32, recompute=False) == pytest.approx(saved_bytes(model, loss), rel=0.02)
    checkpoint_branches(model)
    outside = rows * (cost.kept.bytes(FP32) + sum(4 * block.entry for block in cost.blocks))
    assert outside == pytest.approx(saved_bytes(model, loss), rel=0.02)


@pytest.mark.parametrize("name", CONFIGS)
def test_recomputed_branches_change_no_gradient(name):
    config = CONFIGS[name]
    model = build(config).train()
    loss = loss_of(config, model)
    plain = torch.autograd.grad(loss(), [*model.parameters()], allow_unused=True)
    checkpoint_branches(model)
    again = torch.autograd.grad(loss(), [*model.parameters()], allow_unused=True)
    for a, b in zip(plain, again, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-12)

"""What is planned of both quantisers and the KL autoencoder, against torch: its FLOP counter, what autograd saves."""

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.construct import construct
from zoo.cost import Widths
from zoo.nn.residual import checkpoint_branches
from zoo.resolution import resolve_tree
from zoo.testing.kit import ROWS, Case
from zoo.testing.measured import saved_bytes

CASES = {
    "nearest": ("codebook", "vqgan-tiny", ["quantiser=nearest"]),
    "gumbel": ("codebook", "vqgan-tiny", ["quantiser=gumbel"]),
    "kl": ("latent", "kl-tiny", []),
    "kl of a given scale": ("latent", "kl-tiny", ["scale=0.5", "channels=3", "net.attention=[2]"]),
}


@pytest.fixture(params=CASES)
def case(request):
    interface, card, overrides = CASES[request.param]
    node, config = resolve_tree(card, overrides)
    return Case(request.param, interface, config, lambda seed: construct(node, config, device="cpu", seed=seed))


def loss_of(case, part):
    return part.loss(case.batch(part), case.cond(), step=0, rng=case.rng())["loss"]


def test_flops_are_those_of_torchs_counter(case):
    part = case.of(case.fresh()).train()
    with FlopCounterMode(display=False) as training, sdpa_kernel(SDPBackend.MATH):
        loss_of(case, part)
    with FlopCounterMode(display=False) as encoding, sdpa_kernel(SDPBackend.MATH):
        case.part.encode(case.images())
    cost = case.config.cost()
    assert ROWS * cost.flops == training.get_total_flops()
    assert ROWS * cost.encode == encoding.get_total_flops()


def test_kept_values_are_what_autograd_saves(case):
    part, cost, widths = case.of(case.fresh()).train(), case.config.cost(), Widths(4, 4, 4)
    measured = saved_bytes(part, lambda: loss_of(case, part))
    assert cost.activations(ROWS, widths, recompute=False) == pytest.approx(measured, rel=0.02)
    checkpoint_branches(part)
    outside = ROWS * (cost.kept.bytes(widths) + sum(4 * block.entry for block in cost.blocks))
    assert outside == pytest.approx(saved_bytes(part, lambda: loss_of(case, part)), rel=0.02)


def test_parameters_are_the_built_ones(case):
    built = [(name, tuple(p.shape)) for name, p in case.part.named_parameters()]
    assert [(w.name, w.shape) for w in case.config.cost().weights] == built

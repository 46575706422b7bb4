"""What is planned of both quantisers, against torch: its FLOP counter, and what autograd really saves."""

import pytest
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.construct import construct
from zoo.cost import Widths
from zoo.nn.residual import checkpoint_branches
from zoo.resolution import resolve_tree
from zoo.testing.kit import ROWS, Case


@pytest.fixture(params=["nearest", "gumbel"])
def case(request):
    node, config = resolve_tree("vqgan-tiny", [f"quantiser={request.param}"])
    return Case(request.param, "codebook", config, lambda seed: construct(node, config, device="cpu", seed=seed))


def loss_of(case, part):
    return part.loss(case.batch(part), case.cond(), step=0, rng=case.rng())["loss"]


def saved_bytes(case, part):
    """Return the bytes of the distinct storages that autograd keeps, the part's own tensors left out."""
    own = {x.untyped_storage().data_ptr() for x in (*part.parameters(), *part.buffers())}
    sizes, alive = {}, []

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(x)  # a freed tensor's address would be given to another
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        loss_of(case, part)
    return sum(sizes.values())


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
    assert cost.activations(ROWS, widths, recompute=False) == pytest.approx(saved_bytes(case, part), rel=0.02)
    checkpoint_branches(part)
    outside = ROWS * (cost.kept.bytes(widths) + sum(4 * block.entry for block in cost.blocks))
    assert outside == pytest.approx(saved_bytes(case, part), rel=0.02)


def test_parameters_are_the_built_ones(case):
    built = [(name, tuple(p.shape)) for name, p in case.part.named_parameters()]
    assert [(w.name, w.shape) for w in case.config.cost().weights] == built

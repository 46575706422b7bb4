"""S4D beside its recurrence, the public layer, and what is known of its initial values."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from zoo.nn import s4d
from zoo.nn.s4d import S4D, Ssm, param_groups, ssm_parameters, starts
from zoo.parts import Recipe
from zoo.train import optim

WIDTH, STATE = 5, 8
INITS, RULES = ("lin", "inv", "legs"), ("zoh", "bilinear")


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def layer(stirred=True, **settings):
    """Return a layer in fp64, each weight moved."""
    made = S4D(WIDTH, **{"state": STATE, **settings}).double()
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.add_(normal(*p.shape, seed=i), alpha=0.3 if stirred else 0.0)
    return made


def recurrence(ssm, length):
    """Return the impulse response [H,L] of the systems as their equations have it."""
    dt = ssm.log_dt.exp()[:, None]
    a, b, c = -ssm.log_A_real.exp() + 1j * ssm.A_imag, *(torch.view_as_complex(x) for x in (ssm.B, ssm.C))
    if ssm.rule == "zoh":
        step, gain = (dt * a).exp(), ((dt * a).exp() - 1) / a * b
    else:
        step, gain = (1 + dt * a / 2) / (1 - dt * a / 2), dt / (1 - dt * a / 2) * b
    x, made = gain, []
    for at in range(length):
        made.append(2 * (c * x).sum(-1).real + (ssm.D if at == 0 else 0))
        x = step * x
    return torch.stack(made, -1)


@pytest.mark.parametrize("stirred", [False, True])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("init", INITS)
@torch.no_grad()
def test_the_kernel_is_the_impulse_response(init, rule, stirred):
    ssm = layer(stirred, init=init, rule=rule).causal
    for length in (1, 2, 37, 200):
        found, wanted = ssm(length), recurrence(ssm, length)
        assert found.shape == (WIDTH, length)
        assert (found - wanted).abs().max() < 1e-12 * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_fp32_is_as_good_as_the_table_of_powers(rule):
    torch.manual_seed(0)
    ssm = S4D(32, rule=rule).causal
    wanted = copy.deepcopy(ssm).double()(1024)
    exact = copy.deepcopy(ssm).double().discrete()
    far = [(found - known).abs() for found, known in zip(ssm.discrete(), exact, strict=True)]
    assert (far[0] / exact[0].abs()).max() < 1e-6
    assert (far[1] / ssm.log_dt.exp()[:, None]).max() < 1e-6
    log_a, b = (x.to(torch.complex64) for x in exact)
    table = (log_a[..., None] * torch.arange(1024)).exp()
    direct = 2 * torch.einsum("hn,hnl->hl", torch.view_as_complex(ssm.C) * b, table).real
    direct[:, 0] += ssm.D
    assert (ssm(1024) - wanted).norm() < 3 * (direct - wanted).norm()
    assert (ssm(1024) - wanted).norm() < 5e-5 * wanted.norm()


def test_lin_and_inv():
    lin, _ = starts("lin", 64)
    assert np.allclose(lin.imag, math.pi * np.arange(32))
    inv, _ = starts("inv", 64)
    assert inv.imag[[0, 1, 2, -1]] == pytest.approx([1283.425, 414.227, 240.388, 0.323], abs=1e-3)
    for a, b in (starts("lin", 64), starts("inv", 64)):
        assert np.all(a.real == -0.5)
        assert np.all(b == 1)


def test_legs_is_hippos_normal_part():
    """HiPPO-LegS plus P Pᵀ, P = sqrt(n + 1/2), is normal: its eigenvalues, and Bᵀ exp(t A) B."""
    n = np.arange(16)
    root = np.sqrt(2 * n + 1)
    hippo = -np.tril(np.outer(root, root), -1) - np.diag(n + 1.0)
    matrix = hippo + np.outer(root, root) / 2
    a, b = starts("legs", 16)
    known = np.linalg.eigvals(matrix)
    assert np.allclose(known.real, -0.5)
    assert np.allclose(sorted(a.imag), sorted(known.imag)[8:])
    assert np.allclose(a.real, -0.5)
    for t in (0.0, 0.01, 0.1):
        wanted = root @ torch.linalg.matrix_exp(torch.from_numpy(matrix * t)).numpy() @ root
        assert 2 * (b**2 * np.exp(a * t)).sum().real == pytest.approx(wanted, rel=1e-10)
    assert np.all(np.diff(a.imag) < 0)
    assert np.all(b.real > 0)


@torch.no_grad()
def test_first_weights():
    torch.manual_seed(0)
    ssm = S4D(4000, state=4, init="legs").causal
    a, b = starts("legs", 4)
    assert torch.allclose(ssm.A_imag, torch.from_numpy(a.imag).float().expand(4000, 2))
    assert torch.allclose(ssm.B[..., 0], torch.from_numpy(b.real).float().expand(4000, 2))
    assert torch.allclose(ssm.log_A_real.exp(), torch.full((4000, 2), 0.5))
    assert math.log(0.001) <= float(ssm.log_dt.min()) < math.log(0.0011)
    assert math.log(0.09) < float(ssm.log_dt.max()) <= math.log(0.1)
    assert float(ssm.log_dt.mean()) == pytest.approx(math.log(0.01), abs=0.1)
    assert float(ssm.C.square().sum(-1).mean()) == pytest.approx(1, abs=0.05)
    assert sum(p.numel() for p in S4D(7, bidirectional=True).parameters()) == 388 * 7


@pytest.mark.parametrize("moved", [-1e4, -50.0, 50.0, 1e4])
@pytest.mark.parametrize("rule", RULES)
def test_real_parts_stay_negative_after_any_update(rule, moved):
    made = S4D(3, state=4, rule=rule)
    with torch.no_grad():
        made.causal.log_A_real.fill_(moved)
    assert (made.causal.discrete()[0].real < 0).all()
    made(normal(1, 9, 3, dtype=torch.float32)).sum().backward()
    assert all(p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize("length", [1, 7, 32])
def test_the_reverse_direction_is_correct_to_the_step(length):
    both, u = layer(bidirectional=True), normal(2, length, WIDTH)
    y = both(u)
    alone = S4D(WIDTH, state=STATE).double()
    for ssm, x, found in ((both.causal, u, y[..., :WIDTH]), (both.reverse, u.flip(1), y[..., WIDTH:].flip(1))):
        alone.causal.load_state_dict(ssm.state_dict())
        assert torch.allclose(alone(x), found, atol=1e-12)
    assert not torch.equal(both.causal.C, both.reverse.C)


@pytest.mark.parametrize("rule", RULES)
@torch.no_grad()
def test_steps_are_the_convolution(rule):
    made, u = layer(rule=rule), normal(3, 40, WIDTH)
    state, steps = made.initial_state(3), []
    for at in range(40):
        y, state = made.step(u[:, at], state)
        steps.append(y)
    assert (torch.stack(steps, 1) - made(u)).abs().max() < 1e-12 * max(1.0, float(made(u).abs().max()))
    with pytest.raises(ValueError, match="reads the inputs to come"):
        layer(bidirectional=True).step(u[:, 0], state)


def test_the_public_layer():
    """models/s4/s4d.py of state-spaces/s4 with re-randomised weights, in fp64."""
    held = load_file(Path(__file__).parent / "data" / "s4d.safetensors")
    made = S4D(6, state=8).double()
    kernel = {key.removeprefix("kernel."): x for key, x in held.items() if key.startswith("kernel.") or key == "D"}
    assert not made.causal.load_state_dict(kernel, strict=False).unexpected_keys
    with torch.no_grad():
        nn.init.zeros_(made.causal.B)[..., 0] = 1
    y = made(held["u"].mT)
    assert torch.allclose(y.mT, held["convolved"], atol=1e-12)
    mixed = nn.functional.conv1d(
        nn.functional.gelu(y).mT, held["output_linear.0.weight"], held["output_linear.0.bias"]
    )  # fmt: skip
    assert torch.allclose(nn.functional.glu(mixed, 1), held["y"], atol=1e-12)


def frozen(made, u):
    with torch.inference_mode():
        return made(u)


def counted(monkeypatch):
    """Return a list that grows with every kernel that is made."""
    made, forward = [], Ssm.forward
    monkeypatch.setattr(Ssm, "forward", lambda self, length: (made.append(length), forward(self, length))[1])
    return made


def test_kernels_are_kept_while_weights_are_frozen(monkeypatch):
    made, u, kernels = layer(bidirectional=True).eval(), normal(2, 9, WIDTH), counted(monkeypatch)
    wanted = made(u).detach()
    assert len(kernels) == 2
    for _ in range(3):
        assert torch.allclose(frozen(made, u), wanted, atol=1e-13)
    assert len(kernels) == 4
    assert torch.allclose(frozen(made, u[:, :4])[..., :WIDTH], wanted[:, :4, :WIDTH], atol=1e-12)
    assert len(kernels) == 6
    with torch.no_grad():
        made.train()(u)
    assert made._kept._spectra is None, "training keeps none"


def by_optimizer(fused):
    def change(made):
        made(normal(1, 9, WIDTH)).square().sum().backward()
        torch.optim.AdamW(made.parameters(), lr=0.1, fused=fused).step()

    return change


def by_loading(assign):
    return lambda made: made.load_state_dict(layer(init="inv", bidirectional=True).state_dict(), assign=assign)


@torch.no_grad()
def in_place(made):
    made.reverse.A_imag.mul_(1.5)


CHANGES = {
    "in place": in_place, "in inference mode": torch.inference_mode()(lambda made: made.causal.D.add_(1)),
    "load": by_loading(False), "assign": by_loading(True), "optimizer": by_optimizer(False),
    "fused": by_optimizer(True),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_kept_kernels_are_never_stale(change):
    made, u = layer(bidirectional=True).eval(), normal(2, 9, WIDTH)
    for _ in range(3):
        before = frozen(made, u)
        change(made)
        fresh = S4D(WIDTH, state=STATE, bidirectional=True).double()
        fresh.load_state_dict(made.state_dict())
        assert torch.allclose(frozen(made, u), fresh(u), atol=1e-12)
    if change is not CHANGES["load"] and change is not CHANGES["assign"]:
        assert not torch.allclose(frozen(made, u), before)


def test_kept_kernels_follow_the_precision_and_stay_out_of_copies():
    made, u = layer().eval(), normal(2, 9, WIDTH)
    wanted = frozen(made, u)
    assert torch.allclose(frozen(made.float(), u.float()).double(), wanted, atol=1e-4)
    assert made._kept._spectra.dtype == torch.complex64
    frozen(made.double(), u)
    assert made._kept._spectra.dtype == torch.complex128
    assert not any("kept" in key or "spectra" in key for key in made.state_dict())
    twin = copy.deepcopy(made)  # by the protocol that pickle has, too
    assert twin._kept is not made._kept
    assert twin._kept._spectra is None
    assert torch.equal(frozen(twin, u), frozen(made, u))
    made(u).sum().backward()  # after inference mode, in eval
    made.train()(u).sum().backward()
    assert made.causal.A_imag.grad.abs().sum() > 0


def test_checkpointing_changes_nothing():
    made, u = layer(bidirectional=True), normal(2, 9, WIDTH).requires_grad_()
    weights = [u, *made.parameters()]
    plain = torch.autograd.grad(made(u).square().sum(), weights)
    for reentrant in (False, True):
        made.zero_grad()
        u.grad = None
        checkpoint(made, u, use_reentrant=reentrant).square().sum().backward()
        assert all(torch.equal(a, b.grad) for a, b in zip(plain, weights, strict=True))


@pytest.mark.filterwarnings("ignore:half precision")
def test_under_autocast_it_is_fp32s():
    made = S4D(WIDTH, state=STATE)
    u = normal(2, 9, WIDTH, dtype=torch.float32)
    plain = made(u)
    plain_grads = torch.autograd.grad(plain.square().sum(), list(made.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(made(u), plain)
        assert made(u.bfloat16()).dtype == torch.bfloat16
        grads = torch.autograd.grad(made(u).square().sum(), list(made.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(grads, plain_grads, strict=True))
    half = S4D(WIDTH, state=STATE).bfloat16()
    half(u.bfloat16()).sum().backward()
    assert half.causal.log_dt.grad.dtype == torch.bfloat16
    assert half.eval().step(u[:, 0].bfloat16(), half.initial_state(2))[0].dtype == torch.bfloat16


def test_it_is_built_and_run_on_the_meta_device():
    with torch.device("meta"):
        made = S4D(WIDTH, bidirectional=True, init="legs")
        assert all(p.is_meta for p in made.parameters())
        assert made(torch.empty(2, 9, WIDTH)).shape == (2, 9, 2 * WIDTH)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.s4d, self.norm = nn.Linear(3, WIDTH), S4D(WIDTH, bidirectional=True), nn.LayerNorm(WIDTH)
        self.norm.bias.requires_grad_(False)


@pytest.mark.parametrize("lr", [1e-4, 1e-2])
def test_groups_hold_each_parameter_once(lr):
    model = Model()
    matrices, vectors, slow = groups = param_groups(model, Recipe(lr=lr, weight_decay=0.1))
    names = {id(p): name for name, p in model.named_parameters()}
    found = [{names[id(p)] for p in group["params"]} for group in groups]
    assert found[0] == {"up.weight", "s4d.causal.C", "s4d.reverse.C"}
    assert found[1] == {"up.bias", "norm.weight", "s4d.causal.D", "s4d.reverse.D"}
    kinds = ("log_dt", "log_A_real", "A_imag", "B")
    assert found[2] == {f"s4d.{side}.{kind}" for side in ("causal", "reverse") for kind in kinds}
    assert sum(len(group["params"]) for group in groups) == len(names) - 1
    assert [group["weight_decay"] for group in groups] == [0.1, 0, 0]
    assert slow["lr"] == min(s4d.SSM_LR, lr)
    assert "lr" not in matrices
    assert "lr" not in vectors
    assert [id(p) for p in ssm_parameters(model)] == [id(p) for p in slow["params"]]


def test_the_trainer_takes_the_groups():
    stage, model = nn.Module(), Model()
    stage.part, stage.model = "model", model
    model.param_groups = lambda recipe: param_groups(model, recipe)
    made = optim.optimizer(stage, Recipe(lr=1e-2, weight_decay=0.1))
    assert [group["scale"] for group in made.param_groups] == pytest.approx([1, 1, 0.1])


@pytest.mark.parametrize(
    "wrong", [{"state": 7}, {"state": 0}, {"init": "hippo"}, {"rule": "euler"}, {"dt": (0.1, 0.01)}, {"dt": (0, 1)}]
)
def test_bad_settings(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        S4D(WIDTH, **wrong)


@pytest.mark.parametrize("shape", [(2, WIDTH, 9), (2, 0, WIDTH), (9, WIDTH)])
def test_bad_input(shape):
    with pytest.raises(ValueError, match=r"S4D takes \[B,L,5\]"):
        S4D(WIDTH)(torch.zeros(shape))


def test_weights_that_engines_swap_unseen_are_noticed_at_the_next_evaluation():
    layer, u = S4D(4, state=8).eval(), torch.randn(1, 16, 4)
    with torch.no_grad():
        one = layer(u)
        for p in layer.parameters():
            p.data.copy_(p * 0.5)  # as an average is put in the weights' place
        layer.eval()
        two = layer(u)
        fresh = S4D(4, state=8).eval()
        fresh.load_state_dict(layer.state_dict())
    assert torch.equal(two, fresh(u).detach())
    assert not torch.allclose(one, two)

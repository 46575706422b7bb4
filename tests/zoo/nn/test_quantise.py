"""Vector quantisation against brute force, and the laws of its codebooks."""

import subprocess
import sys
import textwrap

import pytest
import torch

from zoo.nn.quantise import (
    EmaCodes,
    GradientCodes,
    VectorQuantiser,
    nearest,
    rotate,
    straight_through,
    usage,
)
from zoo.rng import Rng

torch.set_num_threads(1)
SHAPES = [(3, 8), (3, 8, 11), (3, 8, 4, 5), (3, 8, 2, 3, 4)]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantiser(codes=GradientCodes, count=16, width=8, **settings):
    torch.manual_seed(0)
    return VectorQuantiser(codes(count, width), **{"revive_below": 0.0} | settings)


def test_nearest_is_the_brute_force_argmin():
    z, book = random(500, 12), random(40, 12, seed=1)
    direct = (z[:, None] - book).square().sum(-1)
    found = nearest(z, book)
    assert torch.equal(found, direct.argmin(1))
    expanded = (
        z.square().sum(1) + torch.addmm(book.square().sum(1), z, book.T, alpha=-2).gather(1, found[:, None])[:, 0]
    )
    torch.testing.assert_close(expanded, direct.min(1).values, atol=1e-4, rtol=0)


def test_nearest_in_blocks_and_of_nothing(monkeypatch):
    z, book = random(77, 4), random(10, 4, seed=1)
    whole = nearest(z, book)
    monkeypatch.setattr("zoo.nn.quantise._BLOCK", 90)
    assert torch.equal(nearest(z, book), whole)
    assert nearest(z[:0], book).shape == (0,)


def test_ties_go_to_the_first():
    book = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    assert nearest(torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]), book).tolist() == [1, 0, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("codes", [GradientCodes, EmaCodes])
def test_any_rank(shape, codes):
    vq, z = quantiser(codes).eval(), random(*shape)
    out = vq(z)
    assert out.codes.shape == (shape[0], *shape[2:])
    assert out.loss.shape == (shape[0],)
    assert out.z.shape == shape
    assert torch.equal(out.codes, vq.encode(z))
    assert torch.equal(out.z, vq.decode(out.codes))
    at = tuple(0 for _ in shape[2:])
    one = (z[1, :, *at] - vq.codes()).square().sum(1).argmin()
    assert out.codes[1, *at] == one
    assert torch.equal(vq.snap(z), out.z)


def test_straight_through_is_the_code_bit_for_bit_and_the_identity_backwards():
    z, e = random(20, 8).requires_grad_(), 1e-3 * random(20, 8, seed=1)
    out, g = straight_through(z, e), random(20, 8, seed=2)
    assert torch.equal(out, e)
    (grad,) = torch.autograd.grad(out, z, g)
    assert torch.equal(grad, g)


def test_rotation_is_a_rotation_and_a_scaling():
    z, e = random(6, 5).double().requires_grad_(), random(6, 5, seed=1).double()
    torch.testing.assert_close(rotate(z, e), e, atol=1e-12, rtol=0)
    for i in range(6):
        jacobian = torch.autograd.functional.jacobian(lambda x, i=i: rotate(x, e[i : i + 1])[0], z[i : i + 1])[:, 0]
        ratio = e[i].norm() / z[i].norm()
        torch.testing.assert_close(jacobian.T @ jacobian, ratio**2 * torch.eye(5).double())
        torch.testing.assert_close(jacobian @ z[i], e[i])
        assert torch.linalg.det(jacobian) > 0


def test_rotation_survives_zero_vectors():
    z = torch.zeros(2, 4, requires_grad=True)
    rotate(z, torch.eye(4)[:2]).sum().backward()
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("codes", [GradientCodes, EmaCodes])
def test_gradients_reach_their_owners(codes):
    vq, z = quantiser(codes, beta=0.25).eval(), random(2, 8, 3).requires_grad_()
    out = vq(z)
    out.z.backward(random(2, 8, 3, seed=3), retain_graph=True)  # reconstruction: straight through, codes untouched
    assert torch.equal(z.grad, random(2, 8, 3, seed=3))
    assert all(p.grad is None or not p.grad.any() for p in vq.parameters())
    z.grad = None
    out.loss.sum().backward()
    e = vq.decode(out.codes).detach()
    mean = 3 * 8  # positions and D: each sample's loss is a mean over both
    torch.testing.assert_close(z.grad, 0.25 * 2 * (z.detach() - e) / mean)
    if codes is GradientCodes:
        expected = torch.zeros(16, 8)
        expected.index_add_(0, out.codes.flatten(), (2 * (e - z.detach()) / mean).movedim(1, -1).reshape(-1, 8))
        torch.testing.assert_close(vq.codes.weight.grad, expected)
        unused = torch.bincount(out.codes.flatten(), minlength=16) == 0
        assert unused.any()
        assert not vq.codes.weight.grad[unused].any()


def test_usage_and_perplexity():
    assert usage(torch.full((8,), 5.0))[1].item() == pytest.approx(8)
    assert usage(torch.tensor([0.0, 9.0, 0.0]))[1].item() == 1
    share, perplexity = usage(torch.tensor([1.0, 3.0, 0.0, 0.0]))
    assert share == 0.5
    assert 1 < perplexity < 2


def test_curves_are_reported():
    curves = quantiser()(random(4, 8, 10)).curves
    assert {"perplexity", "usage", "revived", "commitment"} <= set(curves)
    assert 1 <= curves["perplexity"] <= 16
    assert 0 < curves["usage"] <= 1


def test_first_ema_step_is_the_mean_and_unused_codes_stay():
    vq, z = quantiser(EmaCodes, count=32), random(5, 8, 3)
    before = vq.codes.vectors.clone()
    codes = vq(z).codes.flatten()
    rows = z.movedim(1, -1).reshape(-1, 8)
    for k in range(32):
        if (codes == k).any():
            torch.testing.assert_close(vq.codes.vectors[k], rows[codes == k].mean(0))
        else:
            assert torch.equal(vq.codes.vectors[k], before[k])
    assert vq.counts.sum().item() == pytest.approx(15)


def test_ema_is_the_bias_corrected_average():
    vq, z = quantiser(EmaCodes, count=4, decay=0.9), [random(6, 8, 5, seed=s) for s in range(4)]
    hidden_n, hidden_m, norm = torch.zeros(4).double(), torch.zeros(4, 8).double(), 0.0
    for x in z:
        codes = vq(x).codes.flatten()
        one_hot = torch.nn.functional.one_hot(codes, 4).double()
        hidden_n = 0.9 * hidden_n + 0.1 * one_hot.sum(0)
        hidden_m = 0.9 * hidden_m + 0.1 * one_hot.T @ x.movedim(1, -1).reshape(-1, 8).double()
        norm = 0.9 * norm + 0.1
    torch.testing.assert_close(vq.counts.double(), hidden_n / norm, atol=1e-4, rtol=0)
    seen = hidden_n > 0
    expected = (hidden_m / hidden_n[:, None])[seen]
    torch.testing.assert_close(vq.codes.vectors[seen].double(), expected, atol=1e-5, rtol=0)


def test_a_code_used_once_keeps_its_value_for_ever():
    vq = quantiser(EmaCodes, count=2, width=2, decay=0.5)
    vq.codes.vectors.copy_(torch.tensor([[5.0, 5.0], [-5.0, -5.0]]))
    vq(torch.tensor([[4.0, 4.5], [-4.0, -4.0]]))
    once = vq.codes.vectors[0].clone()
    for _ in range(200):  # far enough for its count to underflow to zero
        vq(torch.tensor([[-4.0, -4.0]]))
    assert torch.equal(vq.codes.vectors[0], once)
    assert vq.counts[0] == 0
    vq(torch.tensor([[4.0, 4.0]]))
    torch.testing.assert_close(vq.codes.vectors[0], torch.tensor([4.0, 4.0]))


def test_no_learning_outside_training():
    vq = quantiser(EmaCodes, revive_below=0.5).eval()
    before = {k: x.clone() for k, x in vq.state_dict().items()}
    vq(random(4, 8, 9), Rng(0, range(4)))
    assert all(torch.equal(x, before[k]) for k, x in vq.state_dict().items())


@pytest.mark.parametrize("codes", [GradientCodes, EmaCodes])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_batch_leaves_the_state_alone(codes, value):
    vq, z = quantiser(codes, revive_below=0.5), random(4, 8, 9)
    vq(z, Rng(0, range(4)))
    before = {k: x.clone() for k, x in vq.state_dict().items()}
    z[1, 3, 2] = value
    assert not vq(z, Rng(0, range(4), step=1)).loss.isfinite().all()
    assert all(torch.equal(x, before[k]) for k, x in vq.state_dict().items())


@pytest.mark.parametrize("codes", [GradientCodes, EmaCodes])
def test_dead_codes_become_vectors_of_the_batch(codes):
    vq, z = quantiser(codes, count=32, revive_below=0.2), random(4, 8, 6)
    out = vq(z, Rng(3, range(4)))
    unused = torch.bincount(out.codes.flatten(), minlength=32) == 0
    revived = vq.codes()[unused].detach()
    rows = z.movedim(1, -1).reshape(-1, 8)
    gap, source = torch.cdist(revived, rows).min(1)
    assert int(out.curves["revived"]) == int(unused.sum()) > 8
    assert gap.max() < 1e-5
    assert len(source.unique()) == len(source), "each is another vector of the batch"
    torch.testing.assert_close(vq.counts[unused], torch.full((int(unused.sum()),), 0.2 * 24 / 32))
    assert (vq.encode(z)[..., None] == unused.nonzero()[:, 0]).any(), "and is chosen in the next step"


def test_revival_prefers_badly_coded_vectors():
    vq = quantiser(EmaCodes, count=2, width=2, revive_below=0.1)
    vq.codes.vectors.copy_(torch.tensor([[0.0, 0.0], [1e4, 1e4]]))
    z = torch.cat([1e-3 * random(63, 2), torch.tensor([[3.0, 4.0]])])
    vq(z, Rng(0, range(64)))
    torch.testing.assert_close(vq.codes.vectors[1], torch.tensor([3.0, 4.0]))


def test_usage_recovers_from_collapse():
    vq, z = quantiser(GradientCodes, count=32, revive_below=0.03), random(16, 8, 8) + 20
    optimiser = torch.optim.Adam(vq.parameters(), lr=1e-2)
    shares = []
    for step in range(30):
        out = vq(z, Rng(0, range(16), step=step))
        optimiser.zero_grad()
        out.loss.mean().backward()
        optimiser.step()
        shares.append(out.curves["usage"].item())
    assert shares[0] < 0.1
    assert shares[-1] > 0.9


def test_more_dead_codes_than_vectors():
    vq = quantiser(EmaCodes, count=64, revive_below=0.5)
    assert int(vq(random(2, 8, 3), Rng(0, range(2))).curves["revived"]) == 6


@pytest.mark.parametrize("codes", [GradientCodes, EmaCodes])
def test_state_is_whole(codes):
    """A copy made from the state dict goes on bit for bit."""
    a, b = quantiser(codes, revive_below=0.1), VectorQuantiser(codes(16, 8), revive_below=0.1)
    for step in range(3):
        a(random(4, 8, 5, seed=step), Rng(0, range(4), step=step))
    b.load_state_dict(a.state_dict())
    for step in range(3, 6):
        x, y = (vq(random(4, 8, 5, seed=step), Rng(0, range(4), step=step)) for vq in (a, b))
        assert torch.equal(x.z, y.z)
        assert torch.equal(x.loss, y.loss)
    assert all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


def test_whole_batch_is_asked_for_where_a_pass_changes_the_codes():
    assert not quantiser(GradientCodes).whole_batch
    assert quantiser(EmaCodes).whole_batch
    assert quantiser(GradientCodes, revive_below=0.1).whole_batch


def test_full_precision_under_autocast_and_in_double():
    vq, z = quantiser(count=256).eval(), random(4, 8, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = vq(z)
    assert out.z.dtype == torch.float32
    assert torch.equal(out.codes, vq.encode(z))
    assert vq.double()(z.double()).z.dtype == torch.float64


def test_rms_is_weighted_by_use():
    vq = quantiser(EmaCodes, count=2, width=2)
    vq.codes.vectors.copy_(torch.tensor([[1.0, 1.0], [3.0, 3.0]]))
    assert vq.rms().item() == pytest.approx(5**0.5)
    vq.counts.copy_(torch.tensor([4.0, 0.0]))
    assert vq.rms().item() == pytest.approx(1)


RANK = """
    import sys, torch
    from torch import distributed as dist
    from zoo.nn import across
    from zoo.nn.quantise import EmaCodes, GradientCodes, VectorQuantiser
    from zoo.rng import Rng
    torch.set_num_threads(1)
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
        across.set_group(None)
    states = {}
    for codes in (EmaCodes, GradientCodes):
        torch.manual_seed(0)
        vq = VectorQuantiser(codes(24, 4), revive_below=0.2)
        mine = slice(rank * 8 // world, (rank + 1) * 8 // world)
        for step in range(4):
            z = torch.randn(8, 4, 5, generator=torch.Generator().manual_seed(step))
            vq(z[mine], Rng(0, range(8), step=step)[mine])
        states[codes.__name__] = vq.state_dict()
    torch.save(states, f"{folder}/{world}-{rank}.pt")
"""


def test_ranks_hold_one_codebook_and_it_does_not_depend_on_their_number(tmp_path):
    def start(rank, world):
        command = [sys.executable, "-c", textwrap.dedent(RANK), str(rank), str(world), str(tmp_path)]
        return subprocess.Popen(command)

    runs = [start(0, 1), start(0, 2), start(1, 2)]
    assert [run.wait(timeout=300) for run in runs] == [0, 0, 0]
    alone, first, second = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for codes in alone:
        for name, x in alone[codes].items():
            assert torch.equal(first[codes][name], second[codes][name]), name
            torch.testing.assert_close(first[codes][name], x, atol=1e-5, rtol=1e-5)

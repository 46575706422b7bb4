"""The fp16 branch between fp32 identity paths: what is rounded where, what is scaled, what is filtered."""

import pytest
import torch
from torch import Tensor, nn

from zoo.nn import Residual
from zoo.nn.residual import checkpoint_branches, outer_residuals

WIDTH, ROWS = 8, 6


class Line(nn.Module):
    """A product without bias; it remembers what it was given."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(normal(WIDTH, WIDTH, seed=seed) / WIDTH**0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.dtype
        return nn.functional.linear(x, self.weight)


class Bad(torch.autograd.Function):
    """The identity, whose backward pass puts a value into the first place of the gradient."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad.view(-1)[0] = ctx.value
        return grad, None


class Poisoned(Line):
    """A line with a bad gradient of its own."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return Bad.apply(super().forward(x), self.value)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def block(branch: nn.Module, scale: float, **more) -> Residual:
    made = Residual(branch, **more).train()
    made.grad_scale = torch.tensor(float(scale))
    return made


def test_the_identity_path_keeps_the_bits_that_fp16_has_not() -> None:
    branch = Line()
    nn.init.zeros_(branch.weight)
    x, g = normal(ROWS, WIDTH).requires_grad_(), normal(ROWS, WIDTH, seed=2)
    y = block(branch, 2**13)(x)
    y.backward(g)
    assert branch.seen == torch.float16
    assert y.dtype == x.grad.dtype == torch.float32
    assert torch.equal(y, x)
    assert torch.equal(x.grad, g)
    assert not torch.equal(g.half().float(), g)


@pytest.mark.parametrize("scale", [2.0**7, 2.0**13.3, 2.0**20])
def test_every_rounding_is_where_the_paper_has_it(scale: float) -> None:
    """Each step of figure 4 by hand, the products in float64; a kernel's own sum may differ by a bit of fp16."""
    branch, gain = Line(), 0.375
    x, g = normal(ROWS, WIDTH).requires_grad_(), normal(ROWS, WIDTH, seed=2) * 1e-3
    made = block(branch, scale, gain=gain)
    y = made(x)
    y.backward(g)

    s = made.grad_scale
    x16, w16 = x.detach().half().double(), branch.weight.detach().half().double()
    out16 = (g * gain * s).half().double()
    bit = {"rtol": 2.0**-10, "atol": 1e-7}
    torch.testing.assert_close((y - x).detach(), (gain * (x16 @ w16.T)).float(), **bit)
    torch.testing.assert_close(branch.weight.grad, (out16.T @ x16).float(), **bit)  # carries the scale
    torch.testing.assert_close(x.grad - g, (out16 @ w16).float() / s, **bit)


def test_a_scale_saves_gradients_that_fp16_alone_loses() -> None:
    g = normal(ROWS, WIDTH, seed=2) * 1e-9
    found = {}
    for scale in (1.0, 2.0**24):
        branch, x = Line(), normal(ROWS, WIDTH).requires_grad_()
        block(branch, scale)(x).backward(g)
        found[scale] = branch.weight.grad / scale
    exact = (g.double().T @ normal(ROWS, WIDTH).double()).float()
    assert not found[1.0].any()
    torch.testing.assert_close(found[2.0**24], exact, rtol=5e-3, atol=5e-12)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_what_is_not_finite_stays_in_its_block(value: float) -> None:
    def run(middle: nn.Module) -> tuple[list[Tensor], Tensor]:
        blocks = [block(Line(0), 2**10), middle, block(Line(2), 2**12)]
        x = normal(ROWS, WIDTH).requires_grad_()
        y = x
        for each in blocks:
            y = each(y)
        y.backward(normal(ROWS, WIDTH, seed=2))
        return [next(each.parameters()).grad for each in blocks], x.grad

    (first, bad, last), x = run(block(Poisoned(value), 2**11))
    (_, good, last_too), _ = run(block(Line(), 2**11))
    assert good.isfinite().all()
    assert not bad.isfinite().all()
    assert torch.equal(last, last_too), "later blocks' gradients do not pass it"
    assert first.isfinite().all()
    assert x.isfinite().all()


def test_the_filter_takes_the_bad_values_alone() -> None:
    """The row whose gradient is spoilt passes the identity's; the other rows pass the whole gradient."""
    g, x = normal(ROWS, WIDTH, seed=2), normal(ROWS, WIDTH).requires_grad_()
    block(Poisoned(float("nan")), 2**10)(x).backward(g)
    whole = normal(ROWS, WIDTH).requires_grad_()
    block(Line(), 2**10)(whole).backward(g)
    assert torch.equal(x.grad[0], g[0])
    assert torch.equal(x.grad[1:], whole.grad[1:])
    assert not torch.equal(whole.grad[0], g[0])


def test_an_overflow_of_the_scaled_gradient_is_infinite_and_filtered() -> None:
    branch, x = Line(), normal(ROWS, WIDTH).requires_grad_()
    g = torch.full((ROWS, WIDTH), 8.5)
    block(branch, 2**13)(x).backward(g)  # 8.5 * 8192 is beyond 65504
    assert not branch.weight.grad.isfinite().any()
    assert torch.equal(x.grad, g)


class Widening(nn.Module):
    """A branch that ends in fp32, as autocast has some operations do."""

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.dtype
        return x.float()


def test_the_gradient_enters_a_branch_that_ends_in_fp32_rounded_all_the_same() -> None:
    for size in (1e-3, 8.5):  # the second overflows
        x, g = normal(ROWS, WIDTH).requires_grad_(), normal(ROWS, WIDTH, seed=2).sign() * size
        made = block(Widening(), 2.0**13.3)
        made(x).backward(g)
        assert made.branch.seen == torch.float16
        rounded = (g * made.grad_scale).half().float() / made.grad_scale
        assert torch.equal(x.grad, g + (rounded if size < 1 else 0))


class Mixed(nn.Module):
    """Takes a tensor with a gradient, a mask without, and a function."""

    def __init__(self) -> None:
        super().__init__()
        self.line = Line()

    def forward(self, x: Tensor, shift: Tensor, mask: Tensor, act) -> Tensor:
        self.seen = (shift.dtype, mask.dtype)
        return act(self.line(x) + shift) * mask


def test_what_else_a_branch_takes() -> None:
    shift, mask = normal(ROWS, WIDTH, seed=3).requires_grad_(), torch.rand(ROWS, 1).round()
    x, g = normal(ROWS, WIDTH).requires_grad_(), normal(ROWS, WIDTH, seed=2)
    made = block(Mixed(), 2**10)
    made(x, shift, mask, torch.tanh).backward(g)
    assert made.branch.seen == (torch.float16, torch.float32)
    got = shift.grad.clone(), x.grad.clone()
    shift.grad = x.grad = None
    plain = Residual(made.branch)
    plain(x, shift, mask, torch.tanh).backward(g)
    for a, b in zip(got, (shift.grad, x.grad), strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-3)


class Deep(nn.Module):
    """Norm, products with biases, an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


def run(model: nn.Sequential) -> list[Tensor]:
    model.zero_grad()
    x = normal(ROWS, WIDTH).requires_grad_()
    y = model(x)
    y.backward(normal(ROWS, WIDTH, seed=2))
    return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


def test_checkpointing_changes_no_bit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(block(Deep(), 2.0 ** (10 + i)) for i in range(3)))
    plain = run(model)
    checkpoint_branches(model)
    for a, b in zip(plain, run(model), strict=True):
        assert torch.equal(a, b)
    assert [made.branch.calls for made in model] == [3] * 3, "computed again in the backward pass"


def test_parameters_keep_their_type_and_their_gradients_are_fp32() -> None:
    made = block(Deep(), 2**10)
    run(nn.Sequential(made))
    assert {p.dtype for p in made.parameters()} == {p.grad.dtype for p in made.parameters()} == {torch.float32}
    halved = block(Deep().half(), 2**10)
    y, dx, *grads = run(nn.Sequential(halved))
    assert y.dtype == dx.dtype == torch.float32
    assert {g.dtype for g in grads} == {torch.float16}


def test_evaluation_runs_as_it_is() -> None:
    made = block(Deep(), 2**10).eval()
    x = normal(ROWS, WIDTH)
    assert torch.equal(made(x), x + made.branch(x))
    assert not torch.equal(made.train()(x), x + made.branch(x))


def test_the_scale_is_no_weight() -> None:
    made = block(Deep(), 2**10)
    assert "grad_scale" not in {*made.state_dict(), *dict(made.named_buffers()), *dict(made.named_parameters())}


def test_outer_sums_are_those_outside_every_branch() -> None:
    inner = nn.Sequential(Residual(Line()), Residual(Residual(Line())))
    model = nn.ModuleDict(
        {"a": Residual(inner, skip=nn.Sequential(Residual(Line()))), "ab": Residual(Line()), "c": nn.ReLU()}
    )
    assert [name for name, _ in outer_residuals(model)] == ["a", "a.skip.0", "ab"]
    assert [name for name, _ in outer_residuals(Residual(Residual(Line())))] == [""]

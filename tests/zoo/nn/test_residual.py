import pytest
import torch
from torch import Tensor, nn

from zoo.nn import Residual, residuals
from zoo.nn.residual import checkpoint_branches


class Scaled(nn.Module):
    """A branch with a second argument; it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        self.calls += 1
        y = torch.tanh(self.linear(x))
        return y if scale is None else y * scale


def test_the_sum() -> None:
    branch, x = Scaled(), torch.randn(3, 4)
    torch.testing.assert_close(Residual(branch)(x), x + branch(x))
    torch.testing.assert_close(Residual(branch, gain=0.25)(x), x + 0.25 * branch(x))
    skip, scale = nn.Linear(4, 4), torch.randn(3, 1)
    torch.testing.assert_close(Residual(branch, 0.5, skip)(x, scale), skip(x) + 0.5 * branch(x, scale))


@pytest.mark.parametrize("extra", [False, True])
def test_checkpointing_changes_neither_value_nor_gradient(extra: bool) -> None:
    torch.manual_seed(0)
    model = nn.ModuleList(Residual(Scaled(), gain=0.5) for _ in range(3))
    x = torch.randn(2, 4, requires_grad=True)
    scale = torch.rand(2, 1, requires_grad=True)

    def run() -> list[Tensor]:
        model.zero_grad()
        x.grad = scale.grad = None
        y = x
        for block in model:
            y = block(y, scale) if extra else block(y)
        y.square().sum().backward()
        grads = [p.grad for p in model.parameters()] + [x.grad] + ([scale.grad] if extra else [])
        return [y.detach(), *(g.clone() for g in grads if g is not None)]

    plain = run()
    calls = model[0].branch.calls
    assert calls == 1
    checkpoint_branches(model)
    for a, b in zip(plain, run(), strict=True):
        assert torch.equal(a, b)
    assert model[0].branch.calls == calls + 2, "the branch is computed again in the backward pass"
    checkpoint_branches(model, on=False)
    run()
    assert model[0].branch.calls == calls + 3


def test_checkpointing_is_of_training_only() -> None:
    block = Residual(Scaled()).eval()
    checkpoint_branches(block)
    block(torch.randn(1, 4, requires_grad=True)).sum().backward()
    assert block.branch.calls == 1


def test_residuals_are_listed_by_name_in_order() -> None:
    model = nn.Sequential(Residual(Scaled()), nn.Linear(4, 4), nn.Sequential(Residual(Scaled()), Residual(Scaled())))
    names = [name for name, block in residuals(model) if isinstance(block, Residual)]
    assert names == ["0", "2.0", "2.1"]


def test_state_has_the_branch_and_the_skip() -> None:
    keys = Residual(Scaled(), skip=nn.Linear(4, 4)).state_dict().keys()
    assert set(keys) == {"branch.linear.weight", "branch.linear.bias", "skip.weight", "skip.bias"}

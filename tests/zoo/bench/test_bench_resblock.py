"""The constructed case: one scale loses the late blocks' gradients, a scale a block does not; a sample of the bench."""

import copy

import torch

from zoo.bench import resblock as bench
from zoo.interfaces import Cond, Grad
from zoo.train.resblock import Scales


def state(prefix, early, late):
    """Gradient scales, log2 in thousandths."""
    levels = {"early": early, "late": late}
    blocks = {f"{prefix}{name}.{i}": [x, 125] for name, x in levels.items() for i in (0, 1)}
    return {"workers": 1, "blocks": blocks}


def gradients(stack, step=0, scaler=None, cast=None):
    batch, rng = bench.batch_at(step)
    stack.zero_grad()
    with torch.autocast("cpu", dtype=cast or torch.float16, enabled=cast is not None):
        loss = stack.loss(batch, Cond(), step=step, rng=rng)["loss"]
    (loss if scaler is None else scaler.scale(loss)).backward()
    return {name: p.grad.clone() for name, p in stack.named_parameters()}


def test_a_scale_that_the_early_blocks_bear_loses_the_late_ones():
    """torch's own scaler, left to find its scale; then the same step with a scale a block, and in float64."""
    stack = bench.System(10).parts["stack"].train()
    optimizer, scaler = torch.optim.SGD(stack.parameters(), lr=0.0), torch.amp.GradScaler("cpu")
    for _ in range(20):
        one = gradients(stack, scaler=scaler, cast=torch.float16)
        scaler.step(optimizer)
        scaler.update()
    assert all(g.isfinite().all() for g in one.values()), "it has found its scale"
    assert scaler.get_scale() < 2**13

    exact = gradients(copy.deepcopy(stack).double())
    scales = Scales(stack)
    scales.load_state_dict(state("", 8_500, 20_000))
    each = gradients(stack)
    assert not scales.unscale(Grad(name, g, tuple(g.shape), None, None, False) for name, g in each.items()).any()
    for name, g in exact.items():
        assert (each[name] - g).norm() <= 0.02 * g.norm(), name
        if name.startswith("late.") and "branch" in name:
            lost = (one[name] / scaler.get_scale() - g).norm() / g.norm()
            assert lost > 0.5, name


def test_training_ends_at_the_loss_of_bf16_where_one_scale_does_not():
    steps = 40
    settled = state("stack.", 8_500, 13_000)  # about where the law has them once the early blocks' have fallen
    bf16, ours = bench.train("bf16", steps), bench.train("resblock", steps, settled)
    one = bench.train_one_scale(steps)
    begun, reached = bf16.losses[0][1], bf16.losses[-1][1]
    assert reached < 0.93 * begun
    assert abs(ours.losses[-1][1] / reached - 1) < 0.01
    assert one.losses[-1][1] / reached - 1 > 0.03


def test_rows_and_pictures(tmp_path):
    rows = bench.rows(steps=2)
    assert [row.name.partition("beside ")[2] for row in rows] == ["bf16's", "fp16, one scale's"]
    assert all(row.ratio == row.peer / row.ours for row in rows)
    bench.draw(bench.curves(steps=2), tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")

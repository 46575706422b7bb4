"""A tally's arithmetic by hand."""

from zoo.cost import Cost, Kept, Tally, Widths


def test_a_tally_by_hand():
    t = Tally()
    t.embedding("table", 10, 4, 3)
    with t.at("blocks", 0), t.residual("mlp", 12):
        t.norm("norm", 4, 3)
        t.linear("up", 4, 8, 3)
        with t.residual("inner", 24):
            t.linear("again", 8, 8, 3, bias=False)
        t.linear("down", 8, 4, 3)
    t.conv("head", 4, 5, (1, 3), 3, reads=5)
    cost = t.cost()
    assert [(w.name, w.shape, w.block) for w in cost.weights] == [
        ("table.weight", (10, 4), None),
        ("blocks.0.mlp.branch.norm.weight", (4,), "blocks.0.mlp"),
        ("blocks.0.mlp.branch.norm.bias", (4,), "blocks.0.mlp"),
        ("blocks.0.mlp.branch.up.weight", (8, 4), "blocks.0.mlp"),
        ("blocks.0.mlp.branch.up.bias", (8,), "blocks.0.mlp"),
        ("blocks.0.mlp.branch.inner.branch.again.weight", (8, 8), "blocks.0.mlp.branch.inner"),
        ("blocks.0.mlp.branch.down.weight", (4, 8), "blocks.0.mlp"),
        ("blocks.0.mlp.branch.down.bias", (4,), "blocks.0.mlp"),
        ("head.weight", (5, 4, 1, 3), None),
        ("head.bias", (5,), None),
    ]
    assert [w.name for w in cost.weights if cost.is_matrix(w)] == [
        "blocks.0.mlp.branch.up.weight",
        "blocks.0.mlp.branch.inner.branch.again.weight",
        "blocks.0.mlp.branch.down.weight",
    ]
    (block,) = cost.blocks
    assert block.flops == 2 * 3 * (32 + 64 + 32)
    assert block.kept == Kept(stream=12, inner=12 + 24 + 24, wide=6)
    assert cost.flops == block.flops + 2 * 3 * 4 * 5 * 3
    assert cost.kept == Kept(inner=20, raw=24)
    every = 4 * (12 + 60 + 6) + 80 + 24
    assert cost.activations(2, Widths(4, 4, 4), recompute=False) == 2 * every
    again = 4 * 12 + 4 * (60 + 6) + 80 + 24
    assert cost.activations(2, Widths(4, 4, 4), recompute=True) == 2 * again
    narrow = 2 * 12 + 4 * 12 + 2 * 60 + 4 * 6 + 40 + 24
    assert cost.activations(1, Widths(2, 4, 2), recompute=True) == narrow
    assert Cost().activations(3, Widths(4, 4, 4), recompute=True) == 0


def test_a_model_without_branches_has_matrices_all_the_same():
    t = Tally()
    t.linear("one", 3, 4, 1)
    cost = t.cost()
    assert [cost.is_matrix(w) for w in cost.weights] == [True, False]

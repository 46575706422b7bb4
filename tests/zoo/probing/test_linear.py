"""Linear probes against what must come out."""

import numpy as np
import pytest
import torch

from zoo.errors import BadData
from zoo.probing.linear import (
    BATCH,
    Labelled,
    accuracy,
    balanced,
    by_lbfgs,
    by_sgd,
    sgd,
    sgd_weights,
    standard,
)  # fmt: skip


def clusters(n, seed, apart=6.0, classes=4, width=6):
    """Points round as many corners as there are classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    corners = np.eye(width)[:classes] * apart
    return Labelled((corners[y] + rng.normal(size=(n, width))).astype(np.float32), y)


@pytest.mark.parametrize("solver", [by_lbfgs, by_sgd])
def test_separable_classes_are_told_apart_and_random_labels_are_not(solver):
    train, validation, test = (clusters(n, seed, apart=12.0) for seed, n in enumerate((400, 100, 400)))
    choice = solver(train, validation, classes=4, steps=300)
    assert choice.accuracy == 1.0
    assert accuracy(choice.fit(train + validation)(test.x), test.y) == 1.0
    shuffled = Labelled(train.x, np.random.default_rng(9).permutation(train.y))
    told = solver(shuffled, validation, classes=4, steps=300).fit(shuffled)(test.x)
    assert abs(accuracy(told, np.random.default_rng(8).permutation(test.y)) - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_lbfgs_finds_the_exact_boundary_of_two_gaussians():
    """Of two unit Gaussians at +-m on one axis the best classifier is right Phi(m) of the time."""
    rng = np.random.default_rng(0)

    def draw(n):
        y = rng.integers(0, 2, n)
        x = rng.normal(size=(n, 3)).astype(np.float32)
        x[:, 0] += 2.0 * y - 1.0
        return Labelled(x, y)

    train, test = draw(4000), draw(20000)
    told = by_lbfgs(train, draw(1000)).fit(train)(test.x)
    assert abs(accuracy(told, test.y) - 0.8413) < 0.01


def test_sgd_comes_to_the_optimum_that_lbfgs_finds():
    """The same penalised loss: scikit-learn's C is 1 / (decay * n), and neither penalises the bias."""
    from sklearn.linear_model import LogisticRegression

    data = clusters(BATCH, 3, apart=1.5)
    decay = 0.05
    model = LogisticRegression(C=1 / (decay * len(data.y)), tol=1e-8, max_iter=1000).fit(data.x.astype(float), data.y)
    weight, bias = sgd_weights(data, classes=4, lr=1.0, seed=0, steps=3000, batch=BATCH, decay=decay)

    def loss(w, b):
        logits = torch.from_numpy(data.x).double() @ w.double().T + b.double()
        nats = torch.nn.functional.cross_entropy(logits, torch.from_numpy(data.y))
        return float(nats + decay / 2 * w.double().square().sum())

    theirs = loss(torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_))
    assert theirs - 1e-6 <= loss(weight, bias) < theirs + 2e-3
    assert np.abs(weight.numpy() - model.coef_).max() < 0.1 * np.abs(model.coef_).max()


def test_sgd_is_decided_by_its_seed():
    data = clusters(200, 1, apart=1.0)
    one, same, other = (
        sgd_weights(data, classes=4, lr=1.0, seed=s, steps=50, batch=8, decay=0.0)[0] for s in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert set(sgd(data, classes=4, lr=1.0, steps=5)(data.x)) <= set(range(4))


def test_standard_features_have_mean_0_and_deviation_1_and_constants_stay_0():
    x = np.random.default_rng(0).normal(5, 3, (1000, 4)).astype(np.float32)
    x[:, 2] = 7
    same = standard(x)
    done = same(x)
    assert np.abs(done.mean(0)).max() < 1e-5
    assert np.allclose(done.std(0), [1, 1, 0, 1], atol=1e-5)
    assert np.all(same(x + 1)[:, 2] == 0)


def test_draws_of_labels_are_balanced_seeded_and_different():
    labels = np.repeat([0, 1, 2], [50, 20, 30])
    names = ("a", "b", "c")
    rows = balanced(labels, 7, 0, 0, names)
    assert np.bincount(labels[rows]).tolist() == [7, 7, 7]
    assert len(set(rows.tolist())) == 21
    assert np.array_equal(rows, balanced(labels, 7, 0, 0, names))
    assert not np.array_equal(rows, balanced(labels, 7, 0, 1, names))
    assert not np.array_equal(rows, balanced(labels, 7, 1, 0, names))
    with pytest.raises(BadData, match=r"--labels-per-class 21: 'b' has 20 pictures"):
        balanced(labels, 21, 0, 0, names)

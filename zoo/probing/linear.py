"""Linear classifiers on features: by L-BFGS with a penalty, or by SGD without one.

L-BFGS is scikit-learn's multinomial logistic regression, as [1] probed CIFAR and STL-10; SGD is how [1] probed ImageNet
(momentum 0.9, cosine, learning rates tried downward from 30). What is to be chosen, the penalty or the
learning rate, the validation pictures choose; then the classifier is fitted again with them folded in.

Letters: n pictures, D features, C classes.

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from zoo.errors import BadData
from zoo.rng import Rng

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
"""Values of scikit-learn's C that are tried, the strongest penalty first."""
RATES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Learning rates that are tried, downward."""
PATIENCE = 2
"""Values in a row that may be no better before the search ends."""
MOMENTUM = 0.9
BATCH = 128
ITERATIONS = 500
"""L-BFGS iterations, at most."""
STEPS = 2000
"""SGD updates."""


@attrs.frozen(eq=False)
class Labelled:
    """Features and their classes."""

    x: np.ndarray
    """float32 [n,D]."""
    y: np.ndarray
    """int64 [n]."""

    def __add__(self, other: Labelled) -> Labelled:
        return Labelled(np.concatenate([self.x, other.x]), np.concatenate([self.y, other.y]))

    def __getitem__(self, rows: np.ndarray) -> Labelled:
        return Labelled(self.x[rows], self.y[rows])


Predict = Callable[[np.ndarray], np.ndarray]
"""Features [n,D] -> classes [n]."""
Fit = Callable[[Labelled], Predict]


@attrs.frozen(eq=False)
class Choice:
    """What validation chose."""

    setting: dict[str, float]
    """{"C": ...} or {"lr": ...}."""
    accuracy: float
    """Share of validation pictures told right."""
    fit: Fit
    """Fits with this setting."""


def accuracy(told: np.ndarray, y: np.ndarray) -> float:
    """Return the share of classes told right."""
    return float((told == y).mean())


def standard(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return what gives the features [n,D] mean 0 and standard deviation 1, and others the same change.

    A feature that is constant stays at 0 whatever it is elsewhere.
    """
    mean, deviation = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    factor = np.where(deviation > 1e-6 * (1 + np.abs(mean)), 1 / np.maximum(deviation, 1e-30), 0.0)
    return lambda other: ((other - mean) * factor).astype(np.float32)


def by_lbfgs(train: Labelled, validation: Labelled, **_: Any) -> Choice:
    """Choose the penalty on the validation pictures; of equals, the strongest."""
    model = _regression()
    penalty, share = _searched(PENALTIES, lambda c: _fitted(model, c, train), validation)
    return Choice({"C": penalty}, share, lambda data: _approached(penalty, data))


def _approached(penalty: float, data: Labelled) -> Predict:
    """Fit with ever weaker penalties up to this one, as it was chosen: from scratch a weak one may not converge."""
    model = _regression()
    predict = [_fitted(model, c, data) for c in PENALTIES if c <= penalty]
    return predict[-1]


def _searched(values: Sequence[float], fit: Callable[[float], Predict], validation: Labelled) -> tuple[float, float]:
    """Return the value that tells most validation pictures right, and their share; the first of equals.

    The search goes on until values are no better `PATIENCE` times in a row.
    """
    best, worse = (values[0], -1.0), 0
    for value in values:
        share = accuracy(fit(value)(validation.x), validation.y)
        if share > best[1]:
            best, worse = (value, share), 0
        elif (worse := worse + 1) == PATIENCE:
            break
    return best


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=ITERATIONS, warm_start=True)


def _fitted(model: Any, penalty: float, data: Labelled) -> Predict:
    """Fit the model, from where it is, with scikit-learn's C."""
    if len(np.unique(data.y)) == 1:  # of few labels all may be of one class; there is nothing to fit
        only = data.y[0]
        return lambda x: np.full(len(x), only)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a weak penalty on separable data never converges; accuracy does
        return model.set_params(C=penalty).fit(data.x.astype(np.float64), data.y).predict


def by_sgd(train: Labelled, validation: Labelled, *, classes: int, seed: int = 0, steps: int = STEPS) -> Choice:
    """Choose the learning rate on the validation pictures, from above; of equals, the highest."""
    how: dict[str, Any] = {"classes": classes, "seed": seed, "steps": steps}
    lr, share = _searched(RATES, lambda rate: sgd(train, lr=rate, **how), validation)
    return Choice({"lr": lr}, share, lambda data: sgd(data, lr=lr, **how))


SOLVERS: dict[str, Callable[..., Choice]] = {"lbfgs": by_lbfgs, "sgd": by_sgd}


def sgd(
    data: Labelled, *, classes: int, lr: float, seed: int = 0, steps: int = STEPS, batch: int = BATCH,
    decay: float = 0.0,
) -> Predict:  # fmt: skip
    """Fit by SGD with momentum 0.9 and a learning rate that falls to 0 as half a cosine; return what predicts."""
    weight, bias = sgd_weights(data, classes=classes, lr=lr, seed=seed, steps=steps, batch=batch, decay=decay)
    w, b = weight.numpy(), bias.numpy()
    return lambda x: (x @ w.T + b).argmax(1)


def sgd_weights(
    data: Labelled, *, classes: int, lr: float, seed: int, steps: int, batch: int, decay: float
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return weight [C,D] and bias [C], from zero; `decay` times the weight is added to its gradient."""
    x = F.pad(torch.from_numpy(data.x), (0, 1), value=1.0)  # the last column is the bias's
    y = F.one_hot(torch.from_numpy(data.y), classes).float()
    both, speed = torch.zeros(classes, x.shape[1]), torch.zeros(classes, x.shape[1])
    shrink = torch.full((x.shape[1],), decay)
    shrink[-1] = 0.0
    drawn = Rng(seed, range(steps)).fork("sgd").integers(len(x), min(batch, len(x)))
    for step, rows in enumerate(drawn):
        # The gradient of the mean cross-entropy, written out: autograd would take longer than the products.
        some = x[rows]
        wrong = (some @ both.T).softmax(1).sub_(y[rows])
        speed.mul_(MOMENTUM).addmm_(wrong.T, some, alpha=1 / len(rows)).addcmul_(both, shrink)
        both.sub_(speed, alpha=lr * 0.5 * (1 + math.cos(math.pi * step / steps)))
    return both[:, :-1], both[:, -1]


def balanced(labels: np.ndarray, each: int, seed: int, draw: int, classes: tuple[str, ...]) -> np.ndarray:
    """Return rows with `each` of every class that occurs, sorted; draw number `draw`.

    Raises:
        BadData: a class has fewer.
    """
    chosen = []
    order = torch.argsort(Rng(seed, range(len(labels)), step=draw).fork("labels").integers(2**53), stable=True).numpy()
    for label in np.unique(labels):
        mine = order[labels[order] == label][:each]
        if len(mine) < each:
            raise BadData(
                f"--labels-per-class {each}: '{classes[label]}' has {len(mine)} pictures to draw from; "
                "ask for fewer, or raise --pictures"
            )
        chosen.append(mine)
    return np.sort(np.concatenate(chosen))

"""Checks of denoisers: one prediction a row, a variance in range, a condition that can be dropped."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from zoo.interfaces import Prediction
from zoo.testing.kit import ROWS, Case, close, global_random_state_kept, need


def _predict(
    case: Case, rows: slice = slice(None), seed: int = 0, drop: Tensor | None = None, **more: Tensor
) -> Prediction:  # fmt: skip
    logsnr, cond = torch.linspace(-8, 8, ROWS), attrs.evolve(case.cond(seed=seed), drop=drop, **more)
    return case.part.predict(case.z()[rows], logsnr[rows], cond[rows])


def predictions_have_their_shape(case: Case) -> None:
    """predict returns finite [B,C,H,W], and a variance in [-1, 1] or None, from rows that do not see each other."""
    need(case.part.prediction in ("eps", "v", "x0"), f"prediction is '{case.part.prediction}', not eps, v or x0")
    with torch.inference_mode(), global_random_state_kept("predict"):
        whole = _predict(case)
        one = _predict(case, slice(1, 2))
    need(whole.mean.shape == case.z().shape, f"the prediction has shape {list(whole.mean.shape)}")
    need(whole.mean.isfinite().all(), "the prediction is not finite")
    close(whole.mean[1:2], one.mean, "a prediction depends on the rows beside it")
    if whole.variance is not None:
        need(whole.variance.shape == whole.mean.shape, f"the variance has shape {list(whole.variance.shape)}")
        need(whole.variance.abs().max() <= 1, "the variance leaves [-1, 1]")


def dropped_condition_is_unseen(case: Case) -> None:
    """Rows of `cond.drop` do not see their condition, and the others do not notice."""
    everyone, some = torch.ones(ROWS, dtype=torch.bool), torch.arange(ROWS) % 2 == 0
    with torch.inference_mode():
        null = _predict(case, drop=everyone).mean
        close(null, _predict(case, seed=1, drop=everyone).mean, "a dropped condition is seen", 1e-6)
        mixed = _predict(case, drop=some).mean
        kept = _predict(case).mean
    close(mixed[some], null[some], "a dropped row is not as if all were dropped")
    close(mixed[~some], kept[~some], "a row that is kept notices that another is dropped")


def picture_below_is_never_dropped(case: Case) -> None:
    """Where there is a picture of the stage below, it and its noise level are read, by dropped rows too."""
    cond = case.cond()
    if cond.low is None or cond.low_level is None:
        return
    for drop in (None, torch.ones(ROWS, dtype=torch.bool)):
        rows = "" if drop is None else " by rows that drop their condition"
        with torch.inference_mode():
            own = _predict(case, drop=drop).mean
            other = _predict(case, drop=drop, low=-cond.low).mean
            louder = _predict(case, drop=drop, low_level=cond.low_level - 2).mean
        for what, found in (("low", other), ("low_level", louder)):
            moved = (own - found).abs().flatten(1).amax(1)
            need(moved.min() > 1e-6, f"`{what}` is not read{rows}")


CHECKS = [predictions_have_their_shape, dropped_condition_is_unseen, picture_below_is_never_dropped]

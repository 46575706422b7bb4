"""Checks of priors: what a column may see, and that sampling draws from exactly those logits."""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor

from zoo.errors import CannotSample, ConfigError
from zoo.rng import Rng
from zoo.testing.kit import ROWS, Case, close, global_random_state_kept, need


def _double(case: Case) -> Any:
    """Return a part in float64, where no two logits trade places by a rounding error."""
    return case.of(case.fresh().double())


def _samples(case: Case, part: Any) -> bool:
    try:
        part.sample(case.cond(1), batch=1, rng=case.rng(rows=1))
    except CannotSample:
        return False
    return True


def _rows(case: Case, part: Any, rows: list[int], **settings: Any) -> Tensor:
    """Return samples of these rows of the case's condition; row i has random key i whatever stands beside it."""
    cond = case.cond()[torch.tensor(rows)]
    return part.sample(cond, batch=len(rows), rng=Rng(5, rows), **settings)


def logits_have_their_shape(case: Case) -> None:
    """logits returns finite [B,n,K] for every n up to N; n leading codes give the first n columns."""
    part, codes, cond = case.part, case.codes(case.part), case.cond()
    need(part.length == codes.shape[1], f"length is {part.length}, the grids have {codes.shape[1]} cells")
    with torch.inference_mode(), global_random_state_kept("logits"):
        full = part.logits(codes, cond)
        need(full.shape == (ROWS, part.length, part.vocab_size), f"logits have shape {list(full.shape)}")
        need(full.is_floating_point() and full.isfinite().all(), "logits are not finite")
        if not part.causal:
            return
        for n in {1, part.length // 2} - {0}:
            some = part.logits(codes[:, :n], cond)
            close(some, full[:, :n], f"{n} leading codes give other logits than the first {n} columns of all")


def logits_ignore_neighbours(case: Case) -> None:
    """A row's logits do not depend on the batch around it."""
    part, codes, cond = case.part, case.codes(case.part), case.cond()
    with torch.inference_mode():
        together = part.logits(codes, cond)
        alone = torch.cat([part.logits(codes[i : i + 1], cond[i : i + 1]) for i in range(ROWS)])
    close(together, alone, "a row's logits depend on the rows beside it")


def causal_to_the_bit(case: Case) -> None:
    """Changing code j of a causal prior changes no bit of columns 0 to j."""
    part, codes, cond = case.part, case.codes(case.part), case.cond()
    if not part.causal or part.vocab_size == 1:
        return
    n = part.length
    with torch.inference_mode():
        before = part.logits(codes, cond)
        for j in range(n) if n <= 64 else {0, 1, n // 2, n - 2, n - 1}:
            changed = codes.clone()
            changed[:, j] = (changed[:, j] + 1) % part.vocab_size
            after = part.logits(changed, cond)
            need(torch.equal(before[:, : j + 1], after[:, : j + 1]), f"a column up to {j} sees code {j}")


def masked_codes_are_hidden(case: Case) -> None:
    """-1 marks a masked code of a prior that is not causal: it is neither code 0 nor the last one."""
    part = case.part
    if part.causal or part.length < 2:
        return
    codes, cond = case.codes(part), case.cond()
    with torch.inference_mode():
        answers = []
        for value in (-1, 0, part.vocab_size - 1):
            codes[:, 0] = value
            answers.append(part.logits(codes, cond))
        need(all(x.isfinite().all() for x in answers), "logits with a masked code are not finite")
        need(part.logits(torch.full_like(codes, -1), cond).isfinite().all(), "logits of masks alone are not finite")
    for value, answer in zip((0, part.vocab_size - 1), answers[1:], strict=True):
        need(not torch.equal(answers[0], answer), f"a masked code is read as code {value}")


def dropped_condition_is_unseen(case: Case) -> None:
    """Rows of `cond.drop` do not see their condition, and the others do not notice."""
    part, codes = case.part, case.codes(case.part)
    some = torch.arange(ROWS) % 2 == 0
    one, other = (case.cond(seed=seed, drop=torch.ones(ROWS, dtype=torch.bool)) for seed in (0, 1))
    with torch.inference_mode():
        null = part.logits(codes, one)
        close(null, part.logits(codes, other), "a dropped condition is seen", 1e-6)
        mixed = part.logits(codes, case.cond(drop=some))
        kept = part.logits(codes, case.cond())
    close(mixed[some], null[some], "a dropped row is not as if all were dropped")
    close(mixed[~some], kept[~some], "a row that is kept notices that another is dropped")


def padding_is_unseen(case: Case) -> None:
    """Ids where the mask is False change nothing."""
    cond = case.cond()
    if cond.ids is None or cond.mask is None:
        return
    other = attrs.evolve(cond, ids=torch.where(cond.mask, cond.ids, (cond.ids + 1) % case.config.text_vocab))
    codes = case.codes(case.part)
    with torch.inference_mode():
        close(case.part.logits(codes, cond), case.part.logits(codes, other), "ids under the padding are seen", 1e-6)


def samples_are_codes(case: Case) -> None:
    """sample returns [B,N] int64 in [0, K); the seed decides all, and nothing global is touched."""
    part = case.part
    if not _samples(case, part):
        return
    with global_random_state_kept("sample"):
        codes = part.sample(case.cond(), batch=ROWS, rng=case.rng())
    need(codes.shape == (ROWS, part.length), f"samples have shape {list(codes.shape)}, not {[ROWS, part.length]}")
    need(codes.dtype == torch.int64, f"samples are {codes.dtype}, not int64")
    need(codes.min() >= 0 and codes.max() < part.vocab_size, f"samples leave [0, {part.vocab_size})")
    need(torch.equal(codes, part.sample(case.cond(), batch=ROWS, rng=case.rng())), "one seed gives two samples")
    other = part.sample(case.cond(), batch=ROWS, rng=case.rng(seed=1))
    need(part.vocab_size == 1 or not torch.equal(codes, other), "two seeds give one sample")


def samples_ignore_neighbours(case: Case) -> None:
    """A row's sample depends on its condition and random key alone, not on the batch around it."""
    part = _double(case)
    if not _samples(case, part):
        return
    together = _rows(case, part, [0, 1, 2, 3])
    need(torch.equal(together[2:3], _rows(case, part, [2])), "a row's sample depends on the rows beside it")
    need(torch.equal(together.flip(0), _rows(case, part, [3, 2, 1, 0])), "a row's sample depends on its place")


def sampling_equals_its_logits(case: Case) -> None:
    """A greedy sample is the argmax of full logits at every column: the cache changes nothing, guided or not."""
    part = _double(case)
    if not part.causal or not _samples(case, part):
        return
    with torch.inference_mode():
        cond = case.cond()
        codes = _rows(case, part, [0, 1, 2, 3], temperature=0.0)
        full = part.logits(codes, cond)
        need(torch.equal(codes, full.argmax(-1)), "cached sampling at temperature 0 is not the argmax of full logits")
        for name, value in (("top_k", 1), ("top_p", 1e-9)):
            same = _rows(case, part, [0, 1, 2, 3], **{name: value})
            need(torch.equal(codes, same), f"{name}={value} is not the greedy sample")
        if getattr(case.config, "cond_drop", 0) == 0:
            return
        codes = _rows(case, part, [0, 1, 2, 3], temperature=0.0, guidance=2.5)
        null = part.logits(codes, case.cond(drop=torch.ones(ROWS, dtype=torch.bool)))
        guided = null + 2.5 * (part.logits(codes, cond) - null)
    need(torch.equal(codes, guided.argmax(-1)), "guided sampling is not the argmax of null + g (cond - null)")


def guidance_needs_a_null(case: Case) -> None:
    """guidance other than 1 is refused with cond_drop = 0."""
    part = case.part
    if not _samples(case, part) or getattr(case.config, "cond_drop", 0) > 0:
        return
    try:
        part.sample(case.cond(), batch=ROWS, rng=case.rng(), guidance=2.0)
    except ConfigError:
        return
    raise AssertionError("guidance of a prior trained with cond_drop = 0 is not refused with a ConfigError")


def prefix_is_kept(case: Case) -> None:
    """Given codes come back as they were, row by row; what follows goes on from them."""
    part = _double(case)
    if not _samples(case, part):
        return
    codes, n = case.codes(part), part.length
    given = torch.tensor([[0], [n // 3], [n // 2], [n]])
    prefix = torch.where(torch.arange(n) < given, codes, -1)
    drawn = _rows(case, part, [0, 1, 2, 3], prefix=prefix, temperature=0.0)
    need(torch.equal(drawn[prefix >= 0], codes[prefix >= 0]), "a given code is changed")
    need(drawn.min() >= 0 and drawn.max() < part.vocab_size, f"samples after a prefix leave [0, {part.vocab_size})")
    if not part.causal or n < 2:
        return
    with torch.inference_mode():
        best = part.logits(drawn, case.cond()).argmax(-1)
    need(torch.equal(drawn[prefix < 0], best[prefix < 0]), "what follows a prefix is not the argmax of full logits")
    late = torch.full_like(codes, -1)
    late[:, -1] = 0
    try:
        _rows(case, part, [0, 1, 2, 3], prefix=late)
    except ConfigError:
        return
    raise AssertionError("a causal prior takes leading codes only; a later one is not refused with a ConfigError")


def settings_out_of_range_are_refused(case: Case) -> None:
    """A negative temperature, top_k = 0 and top_p = 0 are a ConfigError each."""
    if not _samples(case, case.part):
        return
    for name, value in (("temperature", -1.0), ("top_k", 0), ("top_p", 0.0)):
        try:
            case.part.sample(case.cond(1), batch=1, rng=case.rng(rows=1), **{name: value})
        except ConfigError:
            continue
        raise AssertionError(f"{name}={value} is not refused with a ConfigError")


def facts_are_kept(case: Case) -> None:
    """The prior has the vocabulary and grids that its config was bound to."""
    part, config = case.part, case.config
    need(part.vocab_size == config.vocab_size, f"K is {part.vocab_size}, the config was bound to {config.vocab_size}")
    grids = tuple(tuple(grid) for grid in part.grids)
    need(grids == config.grids, f"grids are {grids}, the config was bound to {config.grids}")
    need(getattr(config, "reads", None) in ("ids", "label", "nothing"), "config.reads is not ids, label or nothing")


CHECKS = [
    facts_are_kept,
    logits_have_their_shape,
    logits_ignore_neighbours,
    causal_to_the_bit,
    masked_codes_are_hidden,
    dropped_condition_is_unseen,
    padding_is_unseen,
    samples_are_codes,
    samples_ignore_neighbours,
    sampling_equals_its_logits,
    guidance_needs_a_null,
    prefix_is_kept,
    settings_out_of_range_are_refused,
]

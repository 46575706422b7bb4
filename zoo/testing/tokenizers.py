"""Checks of tokenizers: ids in range, masks of leading tokens, captions that come back."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from zoo.errors import NotReady
from zoo.rng import Rng
from zoo.testing.kit import Case, Pictures, global_random_state_kept, need

ODD = ("", "   ", "빨간 원 위에 파란 사각형", "🟥🧑‍🚀 é ﬁ", "a\tred\ncircle", "\x00", "x" * 3000)
"""Captions that people do write."""


def _texts(case: Case) -> list[str]:
    return list(dict.fromkeys(Pictures(case.image_size).texts()))[:8]


def _check(case: Case, ids: Tensor, mask: Tensor, rows: int) -> None:
    part = case.part
    need(ids.shape == mask.shape == (rows, part.length), f"ids and mask have shapes {ids.shape} and {mask.shape}")
    need(ids.dtype == torch.int64 and mask.dtype == torch.bool, f"ids and mask are {ids.dtype} and {mask.dtype}")
    need(ids.min() >= 0 and ids.max() < part.vocab_size, f"ids leave [0, {part.vocab_size})")
    need(not (mask[:, 1:] & ~mask[:, :-1]).any(), "a token follows padding: the mask must be True first, then False")


def ids_are_in_range(case: Case) -> None:
    """encode returns ids [B,T] int64 in [0, vocab_size) and mask [B,T] bool; the same each time."""
    texts = _texts(case)
    with global_random_state_kept("encode"):
        ids, mask = case.part.encode(texts)
    _check(case, ids, mask, len(texts))
    need(mask.any(1).all(), "a caption has no token")
    again = case.part.encode(texts)
    need(torch.equal(ids, again[0]) and torch.equal(mask, again[1]), "one caption gives two encodings")
    alone = case.part.encode(texts[2:3])[0]
    need(torch.equal(alone[0], ids[2]), "a caption's ids depend on the captions beside it")


def odd_captions_are_taken(case: Case) -> None:
    """Empty, long and foreign captions encode and decode; a long one is cut."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ids, mask = case.part.encode(ODD)
    _check(case, ids, mask, len(ODD))
    need(all(isinstance(text, str) for text in case.part.decode(ids)), "decode returns other things than strings")


def captions_come_back(case: Case) -> None:
    """decode(encode(caption)) is the caption, for plain lower-case ones that fit."""
    texts = _texts(case)
    ids, mask = case.part.encode(texts)
    for text, back, full in zip(texts, case.part.decode(ids), mask.all(1).tolist(), strict=True):
        need(full or back == text, f"'{text}' comes back as '{back}'")


def noise_is_row_by_row(case: Case) -> None:
    """With `rng` (training noise) a row's ids depend on its own random key."""
    texts = _texts(case)
    with global_random_state_kept("encode"):
        ids, mask = case.part.encode(texts, Rng(3, range(len(texts))))
    _check(case, ids, mask, len(texts))
    alone, _ = case.part.encode(texts[1:2], Rng(3, [1]))
    need(torch.equal(alone[0], ids[1]), "a row's training noise depends on the rows beside it")


def facts_are_true(case: Case) -> None:
    """What the config promised before building is what was built."""
    facts, part = case.config.facts(case.image_size), case.part
    promised = (facts.vocab_size, facts.length)
    built = (part.vocab_size, part.length)
    need(promised == built, f"facts say {promised} pieces and tokens, the tokenizer has {built}")


def fitting_is_repeatable(case: Case) -> None:
    """A tokenizer that is fitted refuses to encode before, and one seed gives one state."""
    fitted = case.of(case.fresh(fit=False))
    if not hasattr(fitted, "fit"):
        return
    try:
        fitted.encode(["a red circle"])
        raise AssertionError("a tokenizer that is not fitted encodes; it should raise NotReady")
    except NotReady:
        pass
    with global_random_state_kept("fit"):
        fitted.fit(Pictures(case.image_size), seed=0)
    other = case.of(case.fresh(fit=False))
    other.fit(Pictures(case.image_size), seed=0)
    state, again = fitted.state_dict(), other.state_dict()
    need(state.keys() == again.keys(), "two fits have different states")
    for name, x in state.items():
        need(torch.equal(x, again[name]), f"two fits with one seed differ in '{name}'")


CHECKS = [
    facts_are_true,
    ids_are_in_range,
    odd_captions_are_taken,
    captions_come_back,
    noise_is_row_by_row,
    fitting_is_repeatable,
]

"""The best of many candidates, held in memory that does not grow with their number."""

from __future__ import annotations

import torch
from torch import Tensor


class Best:
    """Codes of the best candidates of each prompt so far; the first of equals, and one without a score last.

    Letters: B candidates, N codes of one.

    Args:
        prompts: how many there are.
        keep: candidates kept of each.
    """

    def __init__(self, prompts: int, keep: int) -> None:
        self.keep = keep
        self._found: list[tuple[Tensor, Tensor] | None] = [None] * prompts

    def add(self, prompt: Tensor, codes: Tensor, scores: Tensor) -> None:
        """Take in candidates: the prompt each belongs to [B] int64 in ascending order, codes [B,N], scores [B]."""
        numbers, counts = prompt.unique_consecutive(return_counts=True)
        sizes = counts.tolist()
        for i, some, theirs in zip(numbers.tolist(), scores.split(sizes), codes.split(sizes), strict=True):
            before = self._found[i]
            if before is not None:
                some, theirs = torch.cat((before[0], some)), torch.cat((before[1], theirs))
            order = some.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)[: self.keep]
            self._found[i] = some[order], theirs[order.to(theirs.device)]

    def codes(self) -> Tensor:
        """Return [prompts*keep,N], prompt-major, best first.

        Raises:
            ValueError: a prompt has fewer candidates than are kept.
        """
        found = [pair[1] for pair in self._found if pair is not None]
        if len(found) < len(self._found) or any(len(codes) < self.keep for codes in found):
            raise ValueError(f"a prompt has fewer than {self.keep} candidates")
        return torch.cat(found)

"""Drawing many candidates of each prompt, a chunk at a time, and keeping the best: what every whole system does.

Letters: P prompts, B candidates of a chunk. What is kept of a candidate is the system's own (codes, a latent): its
picture is decoded where it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor

from zoo.errors import ConfigError
from zoo.ranking import Best
from zoo.rng import Rng

CANDIDATE = 1 << 32
"""Row key of candidate j of prompt i is i * CANDIDATE + j: neighbours and chunks change nothing."""

DECODED = 1 << 20
"""Pixels decoded and scored at a time, a picture at least: a decoder's activations take far more than its picture."""

Progress = Callable[[int, int], None]
"""Called with (units of work done, units in all); `System.work` says what a unit is."""

Heard = Callable[[int], None]
"""Called with the units of work that were done just now, over all rows of the chunk."""


def check_counts(card: str, reranker: Any, keep: int, rerank: int | None, chunk: int) -> None:
    """Refuse counts that make no sense.

    Raises:
        ConfigError: a count below 1, `rerank` without a reranker or below `keep`.
    """
    if keep < 1 or chunk < 1:
        raise ConfigError(f"images_per_prompt and chunk must be at least 1, got {keep} and {chunk}")
    if rerank is None:
        return
    if reranker is None:
        raise ConfigError(f"'{card}' has no reranker; set reranker=clip, or leave rerank out")
    if rerank < keep:
        raise ConfigError(f"rerank={rerank} draws fewer candidates than the {keep} pictures asked for")


@attrs.frozen(kw_only=True, eq=False)
class Candidates:
    """What is drawn, of which prompts, and how."""

    prompts: Sequence[Any]
    draw: Callable[[Tensor, Rng, Heard], Tensor]
    """(prompt [B] each candidate belongs to, its random numbers, heard) -> what is kept of them, B rows."""
    decode: Callable[[Tensor], Tensor]
    """What is kept of B candidates -> images [B,3,H,W] in [0, 1]."""
    reranker: Any
    size: int
    """Side of a picture, pixels."""
    units: int
    """Units of work of one candidate."""
    seed: int
    start: int = 0
    """Number of the first prompt, where these are a part of a longer list."""
    chunk: int
    """Candidates drawn at a time."""
    device: torch.device
    progress: Progress | None = None

    def best(self, keep: int, rerank: int | None) -> Tensor:
        """Return images [P*keep,3,H,W], prompt-major: the first candidates, or the reranker's best of `rerank`."""
        best = Best(len(self.prompts), keep)
        for prompt, candidate, kept in self._drawn(rerank or keep):
            best.add(prompt, kept, self._scores(kept, prompt) if rerank is not None else -candidate)
        return self._decoded(best.codes())

    def best_of(self, counts: Sequence[int]) -> dict[int, Tensor]:
        """Return, for each count k, the picture [P,3,H,W] of every prompt that the reranker likes best of its first k.

        The candidates are drawn once, as many as the largest count.
        """
        most, best = max(counts), {k: Best(len(self.prompts), 1) for k in counts}
        for prompt, candidate, drawn in self._drawn(most):
            scores = self._scores(drawn, prompt) if most > 1 else -candidate
            for k, kept in best.items():
                among = candidate < k
                if among.any():
                    kept.add(prompt[among], drawn[among.to(drawn.device)], scores[among.to(scores.device)])
        return {k: self._decoded(kept.codes()) for k, kept in best.items()}

    def _drawn(self, each: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (prompt [B], candidate [B], what is kept of it) of at most `chunk` candidates, prompt-major."""
        total = len(self.prompts) * each
        for first in range(0, total, self.chunk):
            rows = torch.arange(first, min(first + self.chunk, total))
            prompt, candidate = rows // each, rows % each
            rng = Rng(self.seed, (self.start + prompt) * CANDIDATE + candidate)
            work = first * self.units, len(rows) * self.units, total * self.units
            with _told(self.progress, *work) as heard:
                kept = self.draw(prompt.to(self.device), rng, heard)
            yield prompt, candidate, kept

    def _decoded(self, kept: Tensor) -> Tensor:
        return torch.cat([self.decode(some) for some in kept.split(self._at_a_time)])

    def _scores(self, kept: Tensor, prompt: Tensor) -> Tensor:
        """Return the reranker's scores [B] of candidates of prompts number `prompt` [B]; no picture is kept."""
        texts = [p if isinstance(p, str) else "" for p in (self.prompts[int(i)] for i in prompt)]
        scores = []
        for first in range(0, len(kept), self._at_a_time):
            rows = slice(first, first + self._at_a_time)
            scores.append(self.reranker.score(self.decode(kept[rows]), texts[rows]))
        return torch.cat(scores)

    @property
    def _at_a_time(self) -> int:
        return max(1, DECODED // self.size**2)


@contextmanager
def _told(progress: Progress | None, before: int, now: int, total: int) -> Iterator[Heard]:
    """Tell `progress` of all work heard of in the block, and at its end of what was not heard.

    Args:
        before: units done before the block.
        now: units that the block does at most.
        total: units in all.
    """
    done = 0

    def heard(units: int) -> None:
        nonlocal done
        done = min(done + units, now)
        if progress is not None:
            progress(before + done, total)

    yield heard
    if progress is not None and done < now:
        progress(before + now, total)

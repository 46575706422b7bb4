"""Drawing codes one at a time with a decoder that caches what it has read: the loop of every causal transformer prior.

Letters: B batch, R rows (B, twice that under guidance), N codes of a picture, n given ones, K codes to choose from.

[1] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import attrs
import torch
from torch import Tensor

from zoo.interfaces import Cond
from zoo.nn.precision import full_precision
from zoo.nn.sampling import check_guidance, check_prefix, check_sampling, draw, guide
from zoo.rng import Rng


class Decoder(Protocol):
    """A model's caches, for some number of rows."""

    def start(self, codes: Tensor, cond: Cond) -> Tensor:
        """Read the condition and the given codes [R,n] in one pass; return logits [R,K] of code n."""

    def step(self, code: Tensor, i: int) -> Tensor:
        """Read code i [R]; return logits [R,K] of code i + 1."""


@attrs.frozen(kw_only=True, eq=False)
class Drawing:
    """What is drawn, and by what."""

    length: int
    """N."""
    vocab_size: int
    """K."""
    cond_drop: float
    """Share of training samples without their condition; 0: there is no null condition, hence no guidance."""
    device: torch.device
    decoder: Callable[[int], Decoder]
    """Rows to a decoder of so many."""

    def sample(
        self,
        cond: Cond,
        *,
        batch: int,
        temperature: float,
        top_k: int | None,
        top_p: float | None,
        guidance: float,
        rng: Rng,
        prefix: Tensor | None,
    ) -> Tensor:
        """Return codes [B,N]; the arguments are those of `Prior.sample`.

        Raises:
            ConfigError: a setting or the prefix is out of range, or guidance of a prior without a null condition.
        """
        check_sampling(temperature, top_k, top_p)
        check_guidance(guidance, self.cond_drop)
        shape = batch, self.length
        codes = torch.full(shape, -1, device=self.device) if prefix is None else prefix.to(self.device).clone()
        given = 0 if prefix is None else check_prefix(codes, *shape, self.vocab_size)
        with torch.inference_mode():
            u = rng.uniform(self.length, device=self.device)
            if guidance != 1:
                cond = with_null(cond, batch, self.device)
            # In the weights' own precision: cached products write into buffers, which autocast does not see.
            with full_precision(u):
                self._fill(codes, cond, given, u, guidance, (temperature, top_k, top_p))
        return codes

    def _fill(
        self, codes: Tensor, cond: Cond, given: int, u: Tensor, guidance: float,
        how: tuple[float, int | None, float | None],
    ) -> None:  # fmt: skip
        """Draw the free codes of [B,N] in place; the first `given` columns hold none."""
        if given == self.length or len(codes) == 0:
            return
        streams = 1 if guidance == 1 else 2
        # Rows may be given to different lengths: past the shortest, a given code replaces the drawn one.
        ragged = int((codes >= 0).sum(1).max())
        decoder = self.decoder(streams * len(codes))
        logits = decoder.start(codes[:, :given].repeat(streams, 1), cond)
        for i in range(given, self.length):
            drawn = draw(logits if streams == 1 else guide(logits, guidance), u[:, i], *how)
            if i < ragged:
                drawn = torch.where(codes[:, i] >= 0, codes[:, i], drawn)
            codes[:, i] = drawn
            if i + 1 < self.length:
                logits = decoder.step(drawn if streams == 1 else drawn.repeat(2), i)


def with_null(cond: Cond, batch: int, device: torch.device) -> Cond:
    """Return 2B rows: the condition, then the same with every row dropped [1]."""
    drop = torch.zeros(batch, dtype=torch.bool, device=device) if cond.drop is None else cond.drop
    doubled = {name: torch.cat((x, x)) for name, x in cond.filled().items()}
    return Cond(**{**doubled, "drop": torch.cat((drop, torch.ones_like(drop)))})


def dropped(cond: Cond, share: float, rng: Rng, device: torch.device) -> Cond:
    """Return the condition with the rows that training drops, a share of them [1]; one that is given stays dropped."""
    drop = rng.fork("cond_drop").uniform(device=device) < share
    return attrs.evolve(cond, drop=drop if cond.drop is None else drop | cond.drop)

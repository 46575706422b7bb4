"""A prior whose codes know nothing of each other.

Letters: B batch, N codes of a picture, n <= N, K vocabulary, T caption tokens, V caption pieces.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from acme_uniform.configs import Uniform
from zoo.errors import PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn.sampling import check_guidance, check_prefix, check_sampling, draw
from zoo.rng import Rng


class UniformPrior(nn.Module):
    """Uniform at first; trained, it knows how often each code stands where, and which words go with it.

    Args:
        config: bound to its codebook and tokenizer.
    """

    causal = True

    def __init__(self, config: Uniform) -> None:
        super().__init__()
        if config.vocab_size is None or config.grids is None or config.text_vocab is None:
            raise PartMismatch("acme/uniform needs a codebook and a tokenizer beside it")
        self.config, self.vocab_size, self.grids = config, config.vocab_size, config.grids
        self.length = sum(h * w for h, w in config.grids)
        self.table = nn.Parameter(torch.zeros(self.length, config.vocab_size))
        self.words = nn.Parameter(torch.zeros(config.text_vocab, config.vocab_size))

    def _words(self, cond: Cond, rows: int) -> Tensor:
        """Return [B,K], zero for a dropped caption."""
        if cond.ids is None or cond.mask is None:
            return self.words.new_zeros(rows, self.vocab_size)
        seen = cond.mask if cond.drop is None else cond.mask & ~cond.drop[:, None]
        summed = (F.embedding(cond.ids, self.words) * seen[..., None]).sum(1)
        return summed / seen.sum(1, keepdim=True).clamp(min=1)

    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return [B,n,K]; no column sees any code."""
        return self.table[: codes.shape[1]] + self._words(cond, len(codes))[:, None]

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return the cross-entropy, nats a code."""
        assert batch.codes is not None
        if self.training:
            drop = rng.fork("cond_drop").uniform(device=batch.codes.device) < self.config.cond_drop
            cond = attrs.evolve(cond, drop=drop)
        loss = F.cross_entropy(self.logits(batch.codes, cond).float().transpose(1, 2), batch.codes)
        return {"loss": loss}

    @torch.no_grad()
    def sample(
        self,
        cond: Cond,
        *,
        batch: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        rng: Rng,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Return codes [B,N], drawn one by one; `prefix` holds given codes and -1 where free."""
        check_sampling(temperature, top_k, top_p)
        check_guidance(guidance, self.config.cond_drop)
        device = self.table.device
        free = torch.full((batch, self.length), -1, device=device)
        codes = free if prefix is None else prefix.to(device)
        check_prefix(codes, batch, self.length, self.vocab_size)
        # The words add one term to the logits, so guidance scales that term.
        logits = self.table + guidance * self._words(cond, batch)[:, None]
        u = rng.uniform(self.length, device=device)
        drawn = draw(logits.flatten(0, 1), u.flatten(), temperature, top_k, top_p).view(batch, self.length)
        return torch.where(codes >= 0, codes, drawn)

"""DALL-E's transformer: caption tokens and image codes as one stream, modelled left to right.

Letters: B rows, P prefix positions, N codes, n <= N, L positions, D width, K codes of the vocabulary, T caption
positions.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
[2] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import ConfigError, PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn import across
from zoo.nn.cached import Drawing, dropped
from zoo.nn.frozen import Frozen
from zoo.nn.precision import full_precision
from zoo.parts import Facts, Grid
from zoo.rng import Rng
from zoo_dalle import configs
from zoo_dalle.compiled import CompiledDecoder
from zoo_dalle.decode import Decoder
from zoo_dalle.layers import Block, Embedding, Head, Norm, Sink
from zoo_dalle.masks import Masks
from zoo_dalle.prefixes import Caption, CaptionHead, prefix


class Codes(nn.Module):
    """A code's embedding plus that of its place: its row's plus its column's [1] section 2.2, or one of its own."""

    def __init__(self, config: configs.DallePrior, grid: Grid) -> None:
        super().__init__()
        self.token = Embedding(config.vocab_size or 0, config.width)
        self.row_column = config.positions == "row-column"
        if self.row_column:
            self.row = Embedding(grid[0], config.width)
            self.column = Embedding(grid[1], config.width)
        else:
            self.position = Embedding(grid[0] * grid[1], config.width)

    def positions(self) -> Tensor:
        """Return [N,D] in raster order."""
        if not self.row_column:
            return self.position.rows()
        return (self.row.rows()[:, None] + self.column.rows()).flatten(0, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """Return [B,n,D] of the leading codes [B,n]."""
        return self.token(codes) + self.positions()[: codes.shape[1]]


class DallePrior(nn.Module):
    """The transformer prior.

    Args:
        config: bound; `vocab_size` and `grids` are set, and what `reads` needs.

    Raises:
        ConfigError: a field that other parts decide is still None.
    """

    causal = True

    def __init__(self, config: configs.DallePrior) -> None:
        super().__init__()
        if config.vocab_size is None or config.grids is None:
            raise ConfigError("vocab_size, grids: DALL-E's transformer needs its codebook's sizes")
        self.config = config
        self.vocab_size, self.grids = config.vocab_size, config.grids
        (grid,) = config.grids
        self.length = grid[0] * grid[1]
        self.prefix = prefix(config)
        self.codes = Codes(config, grid)
        self.kinds = config.kinds
        self.masks = Masks(self.prefix.length, grid, config.conv_kernel)
        self.blocks = nn.ModuleList(Block(config) for _ in self.kinds)
        norms = [Norm(config.width) for _ in range(config.final_norms)]
        self.norm = norms[0] if len(norms) == 1 else nn.Sequential(*norms)
        self.head = Head(config.width, config.vocab_size, bias=config.head_bias)
        self.caption_head = CaptionHead(config) if config.reads == "ids" else None
        self.compiled = False
        """Whether `sample` compiles its step."""
        self.frozen = Frozen()

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no part depends on a prior."""
        return self.config.facts(image_size)

    def states(self, codes: Tensor, cond: Cond, sinks: list[Sink] | None = None) -> Tensor:
        """Return normed states [B,P+n,D] of the prefix and n codes [B,n]; position P + i - 1 predicts code i.

        Args:
            codes: [B,n] int64; N - 1 are enough to predict N.
            cond: what the prior reads.
            sinks: one a layer, given its keys and values.
        """
        x = torch.cat((self.prefix(cond, len(codes)), self.codes(codes)), 1)
        for i, (block, kind) in enumerate(zip(self.blocks, self.kinds, strict=True)):
            x = block(x, self.masks.attend(kind, x.shape[1], x.device), sinks[i] if sinks else None)
        return self.norm(x)

    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return [B,n,K] of codes [B,n], n <= N; column i sees codes < i only.

        Raises:
            PartMismatch: more codes than the grid holds, or no condition where this prior reads one.
        """
        if codes.shape[1] > self.length:
            raise PartMismatch(f"{codes.shape[1]} codes, and the grid of this prior holds {self.length}")
        return self.head(self._predicting(self.states(codes[:, :-1], cond), codes.shape[1]))

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return "loss", text_weight * text + (1 - text_weight) * image; and both, in nats a token. [1] section 2.2

        "text" is averaged over the tokens (pads are not predicted) of the global batch: each process and micro-batch
        divides by the global count of tokens a sample. "image" is the same number of codes in every sample, so its
        mean over samples is its mean over codes. Without a caption the loss is the image's alone.
        """
        codes = batch.codes
        if codes is None or codes.shape[1] != self.length:
            raise PartMismatch(f"this prior learns from {self.length} codes a picture, and the batch has none such")
        cond = self._drop(cond, len(codes), rng, codes.device)
        states = self.states(codes[:, :-1], cond)
        image = self._image_nats(self._predicting(states, self.length), codes)
        if not isinstance(self.prefix, Caption) or self.caption_head is None:
            return {"loss": image, "image": image.detach()}
        ids, mask = self.caption_head.predicted(*self.prefix.tokens(cond, len(codes)))
        nats = (self.caption_head(states[:, : self.prefix.length], ids) * mask).sum(1).mean()
        text = nats / self._mean_tokens(mask, batch)
        weight = self.config.text_weight
        return {"loss": weight * text + (1 - weight) * image, "text": text.detach(), "image": image.detach()}

    def tokens(self, batch: Batch, cond: Cond, *, rng: Rng) -> Tensor:
        """Return [B], the caption tokens of each sample that the loss predicts; none where the caption is dropped."""
        assert batch.codes is not None
        if not isinstance(self.prefix, Caption) or self.caption_head is None:
            return torch.zeros(len(batch), device=batch.codes.device)
        rows = len(batch.codes)
        read = self.prefix.tokens(self._drop(cond, rows, rng, batch.codes.device), rows)
        return self.caption_head.predicted(*read)[1].sum(1)

    def _mean_tokens(self, mask: Tensor, batch: Batch) -> Tensor:
        """Return tokens a sample over the global batch, of the mask [B,T] of tokens."""
        if batch.tokens is not None:
            mean = batch.tokens[0]
        else:
            tokens, rows = across.sum(torch.stack((mask.sum(), torch.full_like(mask.sum(), len(mask))))).unbind()
            mean = tokens / rows
        return torch.where(mean > 0, mean, 1.0)

    def _predicting(self, states: Tensor, n: int) -> Tensor:
        """Return the states [B,n,D] that predict the first n codes."""
        start = self.prefix.length - 1
        return states[:, start : start + n]

    def _image_nats(self, states: Tensor, codes: Tensor) -> Tensor:
        logits = self.head(states)
        with full_precision(logits):
            return F.cross_entropy(logits.flatten(0, 1), codes.flatten())

    def _drop(self, cond: Cond, rows: int, rng: Rng, device: torch.device) -> Cond:
        """Return the condition with the rows that training drops [2]."""
        if not self.training or self.config.cond_drop == 0 or self.config.reads == "nothing":
            return cond
        return dropped(cond, self.config.cond_drop, rng, device)

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
        """Return codes [B,N]; `prefix` [B,N] holds given leading codes and -1 where free.

        Raises:
            ConfigError: a setting or the prefix is out of range, or guidance of a prior without a null condition.
            PartMismatch: no condition where this prior reads one, or one of another size.
        """
        drawing = Drawing(
            length=self.length,
            vocab_size=self.vocab_size,
            cond_drop=0.0 if self.config.reads == "nothing" else self.config.cond_drop,
            device=self.head.weight.device,
            decoder=partial(CompiledDecoder if self.compiled else Decoder, self),
        )
        return drawing.sample(
            cond, batch=batch, temperature=temperature, top_k=top_k, top_p=top_p, guidance=guidance, rng=rng,
            prefix=prefix,
        )  # fmt: skip

    def compile_sampling(self) -> None:
        """Compile the step of `sample` when it first draws, which takes seconds; measure whether it pays."""
        self.compiled = True

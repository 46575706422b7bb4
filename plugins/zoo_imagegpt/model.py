"""ImageGPT's transformer: a Prior over the codes of any codebook, causal or masked.

Letters: B batch, N codes of a picture, n leading ones, L positions, D width, K codes to choose from.

[1] M. Chen et al.: Generative Pretraining from Pixels. ICML 2020
[2] github.com/openai/image-gpt, src/model.py
[3] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import CannotSample, ConfigError, PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn.cached import Drawing, dropped
from zoo.nn.frozen import Frozen
from zoo.nn.precision import full_precision
from zoo.nn.rms import RmsNorm
from zoo.parts import Facts
from zoo.rng import Rng
from zoo_imagegpt import configs
from zoo_imagegpt.compiled import CompiledDecoder
from zoo_imagegpt.decode import Decoder
from zoo_imagegpt.layers import EPS, STD_POSITION, Attention, Block, Embedding, Head, Sink
from zoo_imagegpt.masked import keep_mask, masked_mean


class ImageGptPrior(nn.Module):
    """The transformer prior.

    Causal, position i holds code i - 1 (position 0 the start vector) and predicts code i, so N positions are enough.
    Masked, position i holds code i, or nothing but its position, and predicts it.

    Args:
        config: bound; `vocab_size` and `grids` are set, and `classes` where labels are read.

    Raises:
        ConfigError: a field that other parts decide is still None.
    """

    def __init__(self, config: configs.ImageGptPrior) -> None:
        super().__init__()
        if config.vocab_size is None or config.grids is None:
            raise ConfigError("vocab_size, grids: ImageGPT's transformer needs its codebook's sizes")
        if config.reads == "label" and config.classes is None:
            raise ConfigError("classes: a prior that reads a label needs the number of classes")
        self.config = config
        self.vocab_size, self.grids, self.length = config.vocab_size, config.grids, config.length
        self.causal = config.objective == "ar"
        self.token = Embedding(config.vocab_size, config.width)
        self.position = Embedding(config.length, config.width, STD_POSITION)
        self.start = Embedding(config.starts, config.width) if self.causal else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = RmsNorm(config.width, EPS)
        self.head = Head(config.width, config.vocab_size)
        self.compiled = False
        """Whether `sample` compiles its step."""
        self.frozen = Frozen()

    def facts(self, image_size: int) -> Facts:
        """Return nothing: no part depends on a prior."""
        return self.config.facts(image_size)

    def embed(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return what the first block reads, [B,1+n,D] of codes [B,n]; masked [B,n,D], where -1 marks a masked code."""
        if self.start is None:
            seen = (codes >= 0).unsqueeze(-1)
            x = self.token(codes.clamp_min(0)) * seen  # zeroed before positions are added [2]
        else:
            x = torch.cat((self._starts(cond, len(codes)), self.token(codes)), 1)
        return x + self.position.rows()[: x.shape[1]]

    def states(self, codes: Tensor, cond: Cond, sinks: list[Sink] | None = None) -> Tensor:
        """Return normed states [B,L,D] of what `embed` makes of codes; `sinks`, one a layer, get keys and values."""
        x = self.embed(codes, cond)
        for i, block in enumerate(self.blocks):
            x = block(x, sinks[i] if sinks else None)
        return self.norm(x)

    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return [B,n,K] of codes [B,n], n <= N.

        Causal, column i sees codes < i only. Masked, -1 marks a masked code, and every column sees the others.

        Raises:
            PartMismatch: more codes than a picture has, or no label where this prior reads one.
        """
        n = codes.shape[1]
        if n > self.length:
            raise PartMismatch(f"{n} codes, and a picture of this prior has {self.length}")
        return self.head(self.states(codes[:, :-1] if self.causal else codes, cond)[:, :n])

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return "loss" in nats a code: the mean over all codes, or of each picture's mean over its masked ones [2]."""
        codes = self._learnt(batch)
        shown, cond, keep = self._shown(codes, cond, rng)
        return {"loss": self._mean(self.logits(shown, cond), codes, keep)}

    def loss_and_features(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> tuple[Losses, Tensor]:
        """Return what `loss` does, and the last of `features` [B,D] of the codes as it shows them: one pass, as in [2].

        A prior that reads labels tells features of pictures whose label it was told.
        """
        codes = self._learnt(batch)
        shown, cond, keep = self._shown(codes, cond, rng)
        x = self.states(shown[:, :-1] if self.causal else shown, cond)
        return {"loss": self._mean(self.head(x), codes, keep)}, x.mean(1)

    def keep(self, rng: Rng, device: torch.device | str | None = None) -> Tensor:
        """Return a mask [B,N], True where a code is seen, as "bert" draws it in training."""
        return keep_mask(rng, self.length, self.config.mask, device)

    def features(self, codes: Tensor, cond: Cond) -> list[Tensor]:
        """Return [B,D] of every layer, L + 1 in all: means over positions of what a linear probe reads [1] section 3.5.

        Layer l < L is the output of the norm before the attention of block l, layer L that of the final norm.

        Args:
            codes: [B,N]; -1 where a code is masked, which only "bert" takes, and is to be evaluated with.
            cond: what the prior reads.

        Raises:
            PartMismatch: another number of codes, or masked ones for a causal prior.
        """
        if codes.shape[1] != self.length:
            raise PartMismatch(f"{codes.shape[1]} codes, and a picture of this prior has {self.length}")
        if self.causal and bool((codes < 0).any()):
            raise PartMismatch("a causal prior masks no codes")
        x = self.embed(codes[:, :-1] if self.causal else codes, cond)
        found = []
        for block in cast(list[Block], list(self.blocks)):
            found.append(cast(Attention, block.attention.branch).norm(x).mean(1))
            x = block(x)
        return [*found, self.norm(x).mean(1)]

    def _learnt(self, batch: Batch) -> Tensor:
        """Return the codes [B,N] of a batch.

        Raises:
            PartMismatch: it has none, or another number of them.
        """
        codes = batch.codes
        if codes is None or codes.shape[1] != self.length:
            raise PartMismatch(f"this prior learns from {self.length} codes a picture, and the batch has none such")
        return codes

    def _shown(self, codes: Tensor, cond: Cond, rng: Rng) -> tuple[Tensor, Cond, Tensor | None]:
        """Return codes and condition as the loss shows them, and which codes are seen where some are masked."""
        if self.causal:
            return codes, self._drop(cond, len(codes), rng, codes.device), None
        keep = self.keep(rng, codes.device)
        return codes.masked_fill(~keep, -1), cond, keep

    def _mean(self, logits: Tensor, codes: Tensor, keep: Tensor | None) -> Tensor:
        with full_precision(logits):
            nats = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(codes.shape)
        return nats.mean() if keep is None else masked_mean(nats, keep)

    def _starts(self, cond: Cond, rows: int) -> Tensor:
        """Return the start vectors [B,1,D].

        Raises:
            PartMismatch: no label where this prior reads one, or another number of them than rows.
        """
        assert self.start is not None
        if self.config.reads == "nothing":
            return self.start.rows().expand(rows, 1, -1)
        null = self.start.num_embeddings - 1
        if cond.label is None:
            if cond.drop is None or not bool(cond.drop.all()):
                raise PartMismatch("this prior reads a label, and was given none")
            label = torch.full((rows,), null, device=self.start.weight.device)
        elif len(cond.label) != rows:
            raise PartMismatch(f"'label' has {len(cond.label)} rows for a batch of {rows}")
        else:
            label = cond.label if cond.drop is None else cond.label.masked_fill(cond.drop, null)
        return self.start(label)[:, None]

    def _drop(self, cond: Cond, rows: int, rng: Rng, device: torch.device) -> Cond:
        """Return the condition with the rows that training drops [3]."""
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
            CannotSample: the prior was trained on masked codes.
            ConfigError: a setting or the prefix is out of range, or guidance of a prior without a null class.
            PartMismatch: no label where this prior reads one, or another number of them.
        """
        if not self.causal:
            raise CannotSample(
                "this prior was trained on masked codes (objective = 'bert'): it has no order in which to draw; "
                "use it for features, or take one with objective = 'ar'"
            )
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
        """Compile the step of `sample` when it first draws, which takes a second or two a layer."""
        self.compiled = True

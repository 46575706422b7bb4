"""Whole systems made of parts. A prompt walks tokenizer -> prior -> codebook -> reranker; nothing looks back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import ConfigError, NotReady, PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.rng import Rng
from zoo.systems import Autoregressive

CANDIDATE = 1 << 32
"""Row key of candidate j of prompt i is i * CANDIDATE + j: neighbours and chunks change nothing."""


class System(nn.Module):
    """What every generator has: parts by role, which of them are ready, and the stages that train them."""

    card: str
    config: Any
    plugin: str
    version: str
    parts: Mapping[str, Any]

    def __init__(self) -> None:
        super().__init__()
        self._ready: dict[str, bool] = {}

    def adopt(self) -> None:
        """Note what is ready at birth: objects that were given, and parts without parameters."""
        for role, part in self.parts.items():
            empty = not (isinstance(part, nn.Module) and any(True for _ in part.parameters()))
            self._ready[role] = getattr(part, "plugin", "") == "given" or empty

    def mark_ready(self, role: str) -> None:
        """Say that a part was loaded, imported, fitted or has taken a step."""
        self._ready[role] = True

    @property
    def ready(self) -> dict[str, bool]:
        """Role -> whether the part has weights worth using; a fitted part answers for itself."""
        return {role: self._ready[role] and getattr(part, "ready", True) for role, part in self.parts.items()}

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Ordered, from `--part` name to the roles it trains or fits."""
        stages: dict[str, tuple[str, ...]] = {}
        for role, part in self.parts.items():
            if "." not in role and hasattr(part, "loss"):
                fitted = [r for r in self.reads(role) if hasattr(self.parts[r], "fit")]
                stages[role] = (*fitted, role)
        return stages

    def reads(self, role: str) -> tuple[str, ...]:
        """Return the roles that the stage `role` uses and does not train by gradient."""
        return tuple(r for r in self.parts if r.startswith(f"{role}."))

    def encode(self, part: str, batch: Batch, *, rng: Rng | None = None) -> Batch:
        """Return the batch with what the stage's frozen parts compute filled in, without gradient."""
        return batch

    def loss(self, part: str, batch: Batch, *, step: int, rng: Rng) -> Losses:
        """Return the loss of the stage's trained part."""
        return self.parts[part].loss(batch, self.cond(part, batch), step=step, rng=rng)

    def tokens(self, part: str, batch: Batch, *, rng: Rng) -> Tensor:
        """Return [B], the tokens of each sample that the part's loss is a mean over; see `Trainable`."""
        return self.parts[part].tokens(batch, self.cond(part, batch), rng=rng)

    def cond(self, part: str, batch: Batch) -> Cond:
        """Return what the part reads of the batch, and nothing else."""
        return Cond()

    def need(self, roles: Sequence[str]) -> None:
        """Raise NotReady when one of `roles` has no weights; the text says which and what to type."""
        missing = [role for role in roles if not self.ready[role]]
        if missing:
            raise NotReady(
                f"'{self.card}' has no weights for {', '.join(missing)}; train them with "
                f"`python scripts/train.py --model {self.card}`, or pass allow_untrained=True"
            )


class Solo(System):
    """A system of one part: what training a part's card trains."""

    def __init__(self, interface: str, part: nn.Module, config: Any) -> None:
        super().__init__()
        self.interface, self.part, self.config = interface, part, config

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """The one stage; a part that is only fitted has one too."""
        return super().stages or ({self.interface: (self.interface,)} if hasattr(self.part, "fit") else {})

    def generate(self, *_: Any, **__: Any) -> Tensor:
        """Refuse: a part alone draws no pictures."""
        raise PartMismatch(f"'{self.card}' is a {self.interface}, not a whole system: it cannot generate")


class AutoregressiveGenerator(System):
    """A prior over the codes of a codebook (see `zoo.systems.Autoregressive`)."""

    def __init__(
        self, config: Autoregressive, *, codebook: Any, prior: Any, tokenizer: Any = None, reranker: Any = None
    ) -> None:
        super().__init__()
        self.config = config
        self.tokenizer, self.codebook, self.prior, self.reranker = tokenizer, codebook, prior, reranker
        self.grids = codebook.grids(config.image_size, config.image_size)
        self.reads_what = getattr(getattr(prior, "config", None), "reads", "nothing")
        if self.reads_what == "ids" and tokenizer is None:
            raise PartMismatch("the prior reads caption ids and this system has no tokenizer; set tokenizer=bpe-shapes")

    def reads(self, role: str) -> tuple[str, ...]:
        nested = super().reads(role)
        if role != "prior":
            return nested
        text = ("tokenizer",) if self.reads_what == "ids" else ()
        return (*text, "codebook", *nested)

    def encode(self, part: str, batch: Batch, *, rng: Rng | None = None) -> Batch:
        if part != "prior":
            return batch
        filled = batch.filled()
        with torch.no_grad():
            if batch.codes is None and batch.images is not None:
                filled["codes"] = self.codebook.encode(batch.images)
            if batch.ids is None and self.reads_what == "ids":
                if batch.texts is None:
                    raise PartMismatch("the prior reads captions and this data has none; use a label or no condition")
                ids, mask = self.tokenizer.encode(batch.texts, rng)
                device = filled["codes"].device
                filled["ids"], filled["mask"] = ids.to(device), mask.to(device)
        return Batch(**filled)

    def cond(self, part: str, batch: Batch) -> Cond:
        if part != "prior" or self.reads_what == "nothing":
            return Cond()
        if self.reads_what == "label":
            if batch.labels is None:
                raise PartMismatch("the prior reads labels and this data has none; set prior.reads=nothing")
            return Cond(label=batch.labels)
        return Cond(ids=batch.ids, mask=batch.mask)

    @property
    def device(self) -> torch.device:
        """Where the prior's parameters are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Any],
        images_per_prompt: int = 1,
        rerank: int | None = None,
        seed: int = 0,
        *,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float | None = None,
        prefix: Tensor | None = None,
        chunk: int = 128,
        allow_untrained: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Draw pictures.

        Args:
            prompts: strings are captions, integers labels, None is unconditional.
            images_per_prompt: pictures returned for each prompt.
            rerank: candidates drawn for each prompt, of which the reranker's best come back, best first.
            seed: decides everything; candidate j of prompt i depends only on (seed, i, j).
            temperature, top_k, top_p, guidance: None means the system's own (`config.sampling`).
            prefix: codes [prompts,N] to keep, -1 where free.
            chunk: candidates drawn at a time; changes memory and speed, not the pictures.
            allow_untrained: draw from parts without weights.
            progress: called with (candidates done, candidates in all).

        Returns:
            Images [prompts*images_per_prompt,3,H,W] in [0, 1], prompt-major.

        Raises:
            NotReady: a part has no weights.
            ConfigError: a prompt the prior does not read, `rerank` without a reranker, a count out of range.
        """
        candidates = rerank if rerank is not None else images_per_prompt
        self._check_counts(images_per_prompt, rerank, chunk)
        used = [*self.reads("prior"), "prior"]
        if rerank is not None:
            used += [*self.reads("reranker"), "reranker"]
        if not allow_untrained:
            self.need(used)
        was_training = self.training
        self.eval()
        try:
            settings = self._settings(temperature, top_k, top_p, guidance)
            cond = self._prompt_cond(list(prompts))
            texts = [p if isinstance(p, str) else "" for p in prompts]
            return self._draw(
                cond, texts, images_per_prompt, candidates, rerank is not None, seed, prefix, chunk, settings, progress
            )
        finally:
            self.train(was_training)

    def _draw(
        self,
        cond: Cond,
        texts: list[str],
        keep: int,
        candidates: int,
        ranked: bool,
        seed: int,
        prefix: Tensor | None,
        chunk: int,
        settings: dict[str, Any],
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        total = len(texts) * candidates
        codes, scores = [], []
        for start in range(0, total, chunk):
            rows = torch.arange(start, min(start + chunk, total))
            prompt, candidate = rows // candidates, rows % candidates
            at = prompt.to(self.device)
            rng = Rng(seed, prompt * CANDIDATE + candidate)
            given = None if prefix is None else prefix.to(self.device)[at]
            drawn = self.prior.sample(cond[at], batch=len(rows), rng=rng, prefix=given, **settings)
            codes.append(drawn)
            if ranked:
                images = self.codebook.decode(drawn, self.grids)
                scores.append(self.reranker.score(images, [texts[int(i)] for i in prompt]))
            if progress is not None:
                progress(min(start + chunk, total), total)
        every = torch.cat(codes).view(len(texts), candidates, -1)
        if ranked:
            best = torch.cat(scores).view(len(texts), candidates).argsort(dim=1, descending=True, stable=True)[:, :keep]
            every = every.gather(1, best[..., None].expand(-1, -1, every.shape[-1]))
        flat = every.flatten(0, 1)
        return torch.cat([self.codebook.decode(part, self.grids) for part in flat.split(chunk)])

    def _check_counts(self, keep: int, rerank: int | None, chunk: int) -> None:
        if keep < 1 or chunk < 1:
            raise ConfigError(f"images_per_prompt and chunk must be at least 1, got {keep} and {chunk}")
        if rerank is None:
            return
        if self.reranker is None:
            raise ConfigError(f"'{self.card}' has no reranker; set reranker=clip, or leave rerank out")
        if rerank < keep:
            raise ConfigError(f"rerank={rerank} draws fewer candidates than the {keep} pictures asked for")

    def _settings(
        self, temperature: float | None, top_k: int | None, top_p: float | None, guidance: float | None
    ) -> dict[str, Any]:
        own = self.config.sampling
        return {
            "temperature": own.temperature if temperature is None else temperature,
            "top_k": own.top_k if top_k is None else top_k,
            "top_p": own.top_p if top_p is None else top_p,
            "guidance": own.guidance if guidance is None else guidance,
        }

    def _prompt_cond(self, prompts: list[Any]) -> Cond:
        """Return the condition of each prompt; None drops it."""
        if not prompts:
            raise ConfigError("no prompt was given")
        drop = torch.tensor([p is None for p in prompts], device=self.device)
        given = [p for p in prompts if p is not None]
        if self.reads_what == "nothing":
            if given:
                raise ConfigError(f"'{self.card}' reads no prompt; pass None for each picture, not {given[0]!r}")
            return Cond(drop=drop)
        if self.reads_what == "label":
            return Cond(label=self._labels(prompts), drop=drop)
        wrong = [p for p in given if not isinstance(p, str)]
        if wrong:
            raise ConfigError(f"'{self.card}' reads captions; {wrong[0]!r} is not a string")
        ids, mask = self.tokenizer.encode(["" if p is None else p for p in prompts])
        return Cond(ids=ids.to(self.device), mask=mask.to(self.device), drop=drop)

    def _labels(self, prompts: list[Any]) -> Tensor:
        classes = self.prior.config.classes
        for p in prompts:
            if p is not None and (isinstance(p, bool) or not isinstance(p, int) or not 0 <= p < classes):
                raise ConfigError(f"'{self.card}' reads labels 0 to {classes - 1}; {p!r} is not one")
        return torch.tensor([0 if p is None else p for p in prompts], device=self.device)

"""A prior over the codes of a codebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from zoo.errors import PartMismatch
from zoo.generators.candidates import Candidates, Heard, Progress, check_counts
from zoo.generators.prompts import condition
from zoo.generators.system import System
from zoo.interfaces import Batch, Cond
from zoo.nn.sampling import hearing
from zoo.rng import Rng
from zoo.systems import Autoregressive


class AutoregressiveGenerator(System):
    """A prior over the codes of a codebook (see `zoo.systems.Autoregressive`)."""

    SETTINGS = ("temperature", "top_k", "top_p", "guidance")

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
        progress: Progress | None = None,
    ) -> Tensor:
        """Draw pictures.

        Args:
            prompts: strings are captions, integers labels, None is unconditional.
            images_per_prompt: pictures returned for each prompt.
            rerank: candidates drawn for each prompt, of which the reranker's best come back, best first.
            seed: decides everything; candidate j of prompt i depends only on (seed, i, j).
            temperature, top_k, top_p, guidance: None means the system's own (`config.sampling`).
            prefix: codes [prompts,N] to keep, -1 where free.
            chunk: candidates drawn at a time; changes memory and speed, not the pictures. Memory does not grow with
                `rerank`: of every prompt only the codes of the best so far are kept.
            allow_untrained: draw from parts without weights.
            progress: called with (codes drawn, codes in all), at every position of the grid.

        Returns:
            Images [prompts*images_per_prompt,3,H,W] in [0, 1], prompt-major.

        Raises:
            NotReady: a part has no weights.
            ConfigError: a prompt the prior does not read, `rerank` without a reranker, a count out of range.
        """
        settings = self._settings(temperature, top_k, top_p, guidance)
        check_counts(self.card, self.reranker, images_per_prompt, rerank, chunk)
        if not allow_untrained:
            self.need(self.used(ranked=rerank is not None))
        with self.evaluating():
            candidates = self._candidates(prompts, settings, prefix, seed=seed, chunk=chunk, progress=progress)
            return candidates.best(images_per_prompt, rerank)

    @torch.no_grad()
    def best_of(
        self,
        prompts: Sequence[Any],
        counts: Sequence[int],
        seed: int = 0,
        *,
        start: int = 0,
        guidance: float | None = None,
        chunk: int = 128,
        progress: Progress | None = None,
    ) -> dict[int, Tensor]:
        """Return, for each count k, the picture of every prompt that the reranker likes best of its first k.

        The candidates are drawn once, as many as the largest count; those of `generate` with the same seed.

        Args:
            prompts: as for `generate`.
            counts: 1 is a single sample, which needs no reranker.
            seed: decides everything.
            start: number of the first prompt, where these are a part of a longer list.
            guidance: None means the system's own (`config.sampling`).
            chunk: candidates drawn at a time.
            progress: called with (codes drawn, codes in all).

        Returns:
            k -> images [prompts,3,H,W] in [0, 1].

        Raises:
            NotReady, ConfigError: see `generate`.
        """
        ranked = max(counts) > 1
        settings = self._settings(None, None, None, guidance)
        check_counts(self.card, self.reranker, min(counts), max(counts) if ranked else None, chunk)
        self.need(self.used(ranked))
        how = {"seed": seed, "start": start, "chunk": chunk, "progress": progress}
        with self.evaluating():
            return self._candidates(prompts, settings, None, **how).best_of(counts)

    def _candidates(
        self, prompts: Sequence[Any], settings: Mapping[str, Any], prefix: Tensor | None, **how: Any
    ) -> Candidates:  # fmt: skip
        classes = getattr(self.prior.config, "classes", None) if self.asks == "label" else None
        cond = condition(
            list(prompts), self.reads_what, card=self.card, tokenizer=self.tokenizer, classes=classes,
            device=self.device,
        )  # fmt: skip
        given = None if prefix is None else prefix.to(self.device)

        def draw(prompt: Tensor, rng: Rng, heard: Heard) -> Tensor:
            start = None if given is None else given[prompt]
            with hearing(heard):
                return self.prior.sample(cond[prompt], batch=len(prompt), rng=rng, prefix=start, **settings)

        return Candidates(
            prompts=prompts, draw=draw, decode=lambda codes: self.codebook.decode(codes, self.grids),
            reranker=self.reranker, size=self.config.image_size, units=self.work[0], device=self.device, **how,
        )  # fmt: skip

    @property
    def work(self) -> tuple[int, str]:
        return sum(h * w for h, w in self.grids), "code"

    @property
    def asks(self) -> str:
        return {"ids": "caption", "label": "label"}.get(self.reads_what, "nothing")

    def used(self, ranked: bool = False) -> list[str]:
        used = [*self.reads("prior"), "prior"]
        return [*used, *self.reads("reranker"), "reranker"] if ranked else used

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

"""Whole systems made of parts. A prompt walks tokenizer -> prior -> codebook -> reranker; nothing looks back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from zoo.compiling import check_compiler
from zoo.errors import ConfigError, NotReady, PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn.sampling import hearing
from zoo.ranking import Best
from zoo.rng import Rng
from zoo.systems import Autoregressive

CANDIDATE = 1 << 32
"""Row key of candidate j of prompt i is i * CANDIDATE + j: neighbours and chunks change nothing."""

DECODED = 1 << 20
"""Pixels decoded and scored at a time, a picture at least: a decoder's activations take far more than its picture."""

Progress = Callable[[int, int], None]
"""Called with (codes drawn, codes in all)."""


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
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def compile_sampling(self) -> None:
        """Let every part that can compile its sampling step do so when it first draws.

        Raises:
            PartMismatch, NotInstalled: no part can; there is no C++ compiler.
        """
        able = [part for part in self.parts.values() if hasattr(part, "compile_sampling")]
        if not able:
            raise PartMismatch(f"no part of '{self.card}' can compile its sampling")
        check_compiler(self.device.type)
        for part in able:
            part.compile_sampling()

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
                f"'{self.card}' has no weights for {', '.join(missing)}; import them, or train them with "
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
        candidates = rerank if rerank is not None else images_per_prompt
        self._check_counts(images_per_prompt, rerank, chunk)
        if not allow_untrained:
            self._need(ranked=rerank is not None)
        settings = self._settings(temperature, top_k, top_p, guidance)
        best = Best(len(prompts), images_per_prompt)
        with self._evaluating():
            drawn = self._drawn(prompts, candidates, seed, 0, prefix, chunk, settings, progress)
            for prompt, candidate, codes in drawn:
                best.add(prompt, codes, self._scores(codes, prompts, prompt) if rerank is not None else -candidate)
            return self._decoded(best.codes())

    @torch.no_grad()
    def best_of(
        self,
        prompts: Sequence[Any],
        counts: Sequence[int],
        seed: int = 0,
        *,
        start: int = 0,
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
            chunk: candidates drawn at a time.
            progress: called with (codes drawn, codes in all).

        Returns:
            k -> images [prompts,3,H,W] in [0, 1].

        Raises:
            NotReady, ConfigError: see `generate`.
        """
        most = max(counts)
        ranked = most > 1
        self._check_counts(min(counts), most if ranked else None, chunk)
        self._need(ranked)
        best = {k: Best(len(prompts), 1) for k in counts}
        with self._evaluating():
            settings = self._settings(None, None, None, None)
            for prompt, candidate, codes in self._drawn(prompts, most, seed, start, None, chunk, settings, progress):
                scores = self._scores(codes, prompts, prompt) if ranked else -candidate
                for k, kept in best.items():
                    among = candidate < k
                    if among.any():
                        kept.add(prompt[among], codes[among.to(codes.device)], scores[among.to(scores.device)])
            return {k: self._decoded(kept.codes()) for k, kept in best.items()}

    def _drawn(
        self,
        prompts: Sequence[Any],
        candidates: int,
        seed: int,
        start: int,
        prefix: Tensor | None,
        chunk: int,
        settings: dict[str, Any],
        progress: Progress | None,
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield (prompt [B], candidate [B], codes [B,N]) of at most `chunk` candidates, prompt-major."""
        cond = self._prompt_cond(list(prompts))
        total, length = len(prompts) * candidates, sum(h * w for h, w in self.grids)
        for first in range(0, total, chunk):
            rows = torch.arange(first, min(first + chunk, total))
            prompt, candidate = rows // candidates, rows % candidates
            at = prompt.to(self.device)
            rng = Rng(seed, (start + prompt) * CANDIDATE + candidate)
            given = None if prefix is None else prefix.to(self.device)[at]
            with _told(progress, first * length, len(rows) * length, total * length):
                codes = self.prior.sample(cond[at], batch=len(rows), rng=rng, prefix=given, **settings)
            yield prompt, candidate, codes

    def _decoded(self, codes: Tensor) -> Tensor:
        """Return the images [B,3,H,W] of codes [B,N]."""
        return torch.cat([self.codebook.decode(some, self.grids) for some in codes.split(self._at_a_time)])

    def _scores(self, codes: Tensor, prompts: Sequence[Any], prompt: Tensor) -> Tensor:
        """Return the reranker's scores [B] of codes [B,N] for prompts number `prompt` [B]; no picture is kept."""
        texts = [p if isinstance(p, str) else "" for p in (prompts[int(i)] for i in prompt)]
        scores = []
        for first in range(0, len(codes), self._at_a_time):
            rows = slice(first, first + self._at_a_time)
            scores.append(self.reranker.score(self.codebook.decode(codes[rows], self.grids), texts[rows]))
        return torch.cat(scores)

    @property
    def _at_a_time(self) -> int:
        return max(1, DECODED // self.config.image_size**2)

    def _need(self, ranked: bool) -> None:
        used = [*self.reads("prior"), "prior"]
        self.need([*used, *self.reads("reranker"), "reranker"] if ranked else used)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)

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
        dropped = given[0] if given else ""  # any caption will do
        with warnings.catch_warnings():
            if not given:
                warnings.simplefilter("ignore")  # that it is empty is meant
            ids, mask = self.tokenizer.encode([dropped if p is None else p for p in prompts])
        return Cond(ids=ids.to(self.device), mask=mask.to(self.device), drop=drop)

    def _labels(self, prompts: list[Any]) -> Tensor:
        classes = self.prior.config.classes
        for p in prompts:
            if p is not None and (isinstance(p, bool) or not isinstance(p, int) or not 0 <= p < classes):
                raise ConfigError(f"'{self.card}' reads labels 0 to {classes - 1}; {p!r} is not one")
        return torch.tensor([0 if p is None else p for p in prompts], device=self.device)


@contextmanager
def _told(progress: Progress | None, before: int, now: int, total: int) -> Iterator[None]:
    """Tell `progress` of every code drawn in the block, and at its end of those that were given or not heard.

    Args:
        before: codes drawn before the block.
        now: codes that the block draws at most.
        total: codes in all.
    """
    if progress is None:
        yield
        return
    done = 0

    def heard(codes: int) -> None:
        nonlocal done
        done = min(done + codes, now)
        progress(before + done, total)

    with hearing(heard):
        yield
    if done < now:
        progress(before + now, total)

"""Denoisers one after the other, each enlarging the pictures of the one below. [1]

Letters: P prompts, B rows, C channels, h w latent grid, S side of a stage's pictures, T tokens, D width.

[1] C. Saharia et al.: Photorealistic text-to-image diffusion models with deep language understanding.
    arXiv:2205.11487
[2] J. Ho et al.: Cascaded diffusion models for high fidelity image generation. arXiv:2106.15282
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from zoo.config import Overrides
from zoo.diffusion.config import Diffusing
from zoo.errors import PartMismatch, UnknownName
from zoo.generators.candidates import CANDIDATE, Candidates, Heard, Progress, check_counts
from zoo.generators.enlarging import changed, cropped, draw_stages, with_low
from zoo.generators.given import Given
from zoo.generators.prompts import condition
from zoo.generators.system import System
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn.resize import smaller
from zoo.rng import Rng
from zoo.systems import Cascade


class CascadeGenerator(System):
    """A text encoder and any number of denoisers (see `zoo.systems.Cascade`)."""

    SETTINGS = ("guidance", "sampling")

    bring: Callable[[str], Any] | None = None
    """Returns the denoiser of a role when it is needed, which is forgotten after its stage; None: `parts` hold all."""

    def __init__(
        self, config: Cascade, *, latent: Any, tokenizer: Any = None, text_encoder: Any = None, reranker: Any = None,
        **denoisers: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = config
        self.tokenizer, self.text_encoder, self.latent, self.reranker = tokenizer, text_encoder, latent, reranker
        self.places = config.places(denoisers | {"base_size": config.base_size})
        for role, denoiser in denoisers.items():
            setattr(self, role, denoiser)
        self._reads = {role: _setting(denoisers[role], "reads") or "nothing" for role in self.places}
        self.reads_what = self._read_by_all()

    def _read_by_all(self) -> str:
        """Return what a prompt is to the stages; some may read nothing.

        Raises:
            PartMismatch: to one it is a caption and to another a label, or what embeds captions is missing.
        """
        read = set(self._reads.values()) - {"nothing"}
        if len(read) > 1:
            said = ", ".join(f"{role} reads {what}" for role, what in self._reads.items())
            raise PartMismatch(f"the stages read different prompts: {said}")
        if "text" in read and (self.tokenizer is None or self.text_encoder is None):
            raise PartMismatch(
                "the denoisers read captions, and this system has no tokenizer or no text_encoder; "
                "set tokenizer=bpe-shapes text_encoder=t5"
            )
        return next(iter(read), "nothing")

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        found = super().stages
        for role, others in self.config.together().items():
            *fitted, last = found[role]
            found[role] = (*fitted, *others, last)
        ahead = [role for role in found if role not in self.places and role != "reranker"]
        return {role: found[role] for role in (*ahead, *self.places, "reranker") if role in found}

    def reads(self, role: str) -> tuple[str, ...]:
        nested = super().reads(role)
        if role == "text_encoder":
            return ("tokenizer", *nested)
        if role not in self.places:
            return nested
        text = ("tokenizer", "text_encoder") if self._reads[role] == "text" else ()
        learning = self.config.together().get(role, ())
        return (*(r for r in text if r not in learning), "latent", *nested)

    @property
    def asks(self) -> str:
        return {"text": "caption", "label": "label"}.get(self.reads_what, "nothing")

    @property
    def work(self) -> tuple[int, str]:
        return sum(getattr(self.config.sampling, role).evaluations for role in self.places), "step"

    def used(self, ranked: bool = False, roles: Sequence[str] | None = None) -> list[str]:
        drawn = self.places if roles is None else roles
        used = list(dict.fromkeys(r for role in drawn for r in (*self._drawn_with(role), role)))
        return [*used, *self.reads("reranker"), "reranker"] if ranked else used

    def until(self, last: str | None) -> list[str]:
        """Return the stages that draw for pictures of the stage `last`, in order; None: of the last there is.

        Raises:
            UnknownName: there is no such stage.
        """
        roles = list(self.places)
        if last is None:
            return roles
        if last not in roles:
            raise UnknownName("stage", last, roles, f"'{self.card}' has {', '.join(roles)}")
        return roles[: roles.index(last) + 1]

    def _drawn_with(self, role: str) -> list[str]:
        return [*self.reads(role), *(["text_encoder"] if self._reads[role] == "text" else [])]

    # Training

    def encode(self, part: str, batch: Batch, *, rng: Rng | None = None) -> Batch:
        if part not in self.places:
            return batch
        filled, place = batch.filled(), self.places[part]
        with torch.no_grad():
            if batch.z is None and batch.images is not None and place.low is None:
                filled["z"] = self.latent.encode(smaller(batch.images, place.image_size))
            if self._reads[part] == "text" and batch.text is None:
                filled |= self._embedded(batch, rng, trained="text_encoder" in self.stages[part])
        return Batch(**filled)

    def _embedded(self, batch: Batch, rng: Rng | None, *, trained: bool) -> dict[str, Tensor]:
        """Return what is missing of ids and mask, and of the embedding where its encoder is not in training."""
        ids, mask = batch.ids, batch.mask
        if ids is None or mask is None:
            if batch.texts is None:
                raise PartMismatch("the denoiser reads captions and this data has none; set its reads=nothing")
            ids, mask = (x.to(self.device) for x in self.tokenizer.encode(batch.texts, rng))
        if trained:
            return {"ids": ids, "mask": mask}
        return {"ids": ids, "mask": mask, "text": self.text_encoder.encode(ids, mask), "text_mask": mask}

    def loss(self, part: str, batch: Batch, *, step: int, rng: Rng) -> Losses:
        if part not in self.places:
            return super().loss(part, batch, step=step, rng=rng)
        denoiser, cond = self.parts[part], self.cond(part, batch)
        z = batch.z
        if self.places[part].low is not None:
            assert batch.images is not None
            z, cond = self._enlarging(part, batch.images, cond, rng)
        assert z is not None
        if denoiser.training:  # a stage is judged on whole pictures
            z, cond = cropped(z, cond, _setting(denoiser, "crop"), rng)
        return denoiser.loss(attrs.evolve(batch, z=z), cond, step=step, rng=rng)

    def cond(self, part: str, batch: Batch) -> Cond:
        reads = self._reads.get(part, "nothing")
        if reads == "label":
            if batch.labels is None:
                raise PartMismatch(f"{part} reads labels and this data has none; set {part}.reads=nothing")
            return Cond(label=batch.labels)
        if reads == "text":
            if batch.text is not None:
                return Cond(text=batch.text, text_mask=batch.text_mask)
            return Cond(text=self.text_encoder.encode(batch.ids, batch.mask), text_mask=batch.mask)
        return Cond()

    @torch.no_grad()
    def _enlarging(self, part: str, images: Tensor, cond: Cond, rng: Rng) -> tuple[Tensor, Cond]:
        """Return z, and the condition with the picture below it, noised at a level of U(0,1). [1] appendix A"""
        place = self.places[part]
        images = smaller(images, place.image_size)
        assert place.low is not None
        level = rng.fork("level").uniform(device=images.device)
        below = smaller(images, place.low)
        schedule = self.parts[part].schedule
        return self.latent.encode(images), with_low(self.latent, schedule, below, place.image_size, level, cond, rng)

    # Sampling

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Any],
        images_per_prompt: int = 1,
        rerank: int | None = None,
        seed: int = 0,
        *,
        guidance: float | None = None,
        sampling: Overrides = (),
        given: Given | None = None,
        chunk: int = 64,
        allow_untrained: bool = False,
        progress: Progress | None = None,
    ) -> Tensor:
        """Draw pictures.

        Args:
            prompts: strings are captions, integers labels, None is unconditional.
            images_per_prompt: pictures returned for each prompt.
            rerank: candidates drawn for each prompt, of which the reranker's best come back, best first.
            seed: decides everything; candidate j of prompt i depends only on (seed, i, j).
            guidance: of every stage; None means each stage's own (`config.sampling`).
            sampling: changes to `config.sampling`: "steps=20" of every stage, "base.steps=20" of one; or a mapping.
            given: pictures to begin from, to complete, or to enlarge; see `Given`.
            chunk: candidates drawn at a time; changes memory and speed, not the pictures.
            allow_untrained: draw from parts without weights.
            progress: called with (steps done, steps in all), of all pictures.

        Returns:
            Images [prompts*images_per_prompt,3,S,S] in [0, 1], prompt-major.

        Raises:
            NotReady: a part has no weights.
            ConfigError: a prompt the denoisers do not read, `rerank` without a reranker, a setting out of range.
        """
        check_counts(self.card, self.reranker, images_per_prompt, rerank, chunk)
        how = self.sampling(guidance, sampling)
        roles = self._begun(given, len(prompts))
        if not allow_untrained:
            self.need(self.used(rerank is not None, roles))
        with self.evaluating():
            drawn = self._candidates(prompts, how, given, roles, seed=seed, chunk=chunk, progress=progress)
            return drawn.best(images_per_prompt, rerank)

    @torch.no_grad()
    def best_of(
        self, prompts: Sequence[Any], counts: Sequence[int], seed: int = 0, *, start: int = 0, chunk: int = 64,
        progress: Progress | None = None, guidance: float | None = None, sampling: Overrides = (),
        last: str | None = None,
    ) -> dict[int, Tensor]:  # fmt: skip
        """Return, for each count k, the picture of every prompt that the reranker likes best of its first k.

        Args:
            prompts, counts, seed, start, chunk, progress: as for `AutoregressiveGenerator.best_of`.
            guidance, sampling: as for `generate`.
            last: the stage whose pictures are wanted: none after it draws. None: the last there is.

        Returns:
            k -> images [prompts,3,S,S] in [0, 1], S the side of the stage's pictures.

        Raises:
            NotReady, ConfigError: see `generate`.
            UnknownName: there is no stage `last`.
        """
        ranked = max(counts) > 1
        check_counts(self.card, self.reranker, min(counts), max(counts) if ranked else None, chunk)
        how, roles = self.sampling(guidance, sampling), self.until(last)
        self.need(self.used(ranked, roles))
        more = {"seed": seed, "start": start, "chunk": chunk, "progress": progress}
        with self.evaluating():
            return self._candidates(prompts, how, None, roles, **more).best_of(counts)

    @torch.no_grad()
    def stage_pictures(
        self, prompts: Sequence[Any], seed: int = 0, *, guidance: float | None = None, sampling: Overrides = (),
        given: Given | None = None, chunk: int = 64, allow_untrained: bool = False,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Return what each stage makes of the first candidate of each prompt: role -> images [P,3,S,S] in [0, 1].

        The arguments are those of `generate`.
        """
        how, roles = self.sampling(guidance, sampling), self._begun(given, len(prompts))
        if not allow_untrained:
            self.need(self.used(roles=roles))
        found: dict[str, list[Tensor]] = {role: [] for role in roles}
        with self.evaluating():
            cond, given = self._asked(prompts), None if given is None else given.to(self.device)
            for rows in torch.arange(len(prompts)).split(chunk):
                theirs = None if given is None else given[rows]
                rng = Rng(seed, rows * CANDIDATE)
                drawn = draw_stages(self, cond[rows.to(self.device)], rng, how, theirs, lambda units: None, roles)
                for role, z in drawn.items():
                    found[role].append(self.latent.decode(z))
        return {role: torch.cat(images) for role, images in found.items()}

    def _begun(self, given: Given | None, prompts: int) -> list[str]:
        """Return the stages that draw.

        Raises:
            ConfigError: what is given is not of as many prompts, or no stage enlarges it.
        """
        if given is None:
            return list(self.places)
        given.check(prompts)
        return given.stages(self.places)

    @torch.no_grad()
    def draw_stage(self, role: str, batch: Batch, seed: int = 0) -> Tensor:
        """Return what one stage makes for the rows of a batch, images [B,3,S,S]; the others are not asked.

        It is given the captions or labels, and, to enlarge, the pictures of the batch made small.
        """
        assert batch.images is not None
        place = self.places[role]
        below = None if place.low is None else smaller(batch.images, place.low)
        read: dict[str, Sequence[Any] | None] = {
            "caption": batch.texts,
            "label": None if batch.labels is None else batch.labels.tolist(),
        }
        with self.evaluating():
            cond = self._asked(read.get(self.asks) or [None] * len(batch))
            rng = Rng(seed, torch.arange(len(batch)) * CANDIDATE)
            how = self.sampling(None, ())
            given = None if below is None else Given(low=below)
            drawn = draw_stages(self, cond, rng, how, given, lambda units: None, roles=[role])
            return self.latent.decode(drawn[role])

    def sampling(self, guidance: float | None, changes: Overrides) -> dict[str, Diffusing]:
        """Return how each stage is sampled, with changes to the system's own settings; see `generate`."""
        own = {role: getattr(self.config.sampling, role) for role in self.places}
        every = {} if guidance is None else {"guidance": guidance}
        return changed(changed(own, every), changes)

    def _candidates(
        self, prompts: Sequence[Any], how: Mapping[str, Diffusing], given: Given | None, roles: Sequence[str],
        **more: Any,
    ) -> Candidates:  # fmt: skip
        cond, given = self._asked(prompts), None if given is None else given.to(self.device)

        def draw(prompt: Tensor, rng: Rng, heard: Heard) -> Tensor:
            theirs = None if given is None else given[prompt]
            return draw_stages(self, cond[prompt], rng, how, theirs, heard, roles)[roles[-1]]

        return Candidates(
            prompts=prompts, draw=draw, decode=self.latent.decode, reranker=self.reranker,
            size=self.config.image_size, units=sum(how[role].evaluations for role in roles), device=self.device, **more,
        )  # fmt: skip

    def _asked(self, prompts: Sequence[Any]) -> Cond:
        """Return the condition of each prompt, its embedding computed once."""
        cond = condition(
            prompts,
            self.reads_what,
            card=self.card,
            tokenizer=self.tokenizer,
            classes=self.config.classes,
            device=self.device,
        )
        if self.reads_what != "text":
            return cond
        text = self.text_encoder.encode(cond.ids, cond.mask)
        return Cond(text=text, text_mask=cond.mask, drop=cond.drop)


def _setting(part: Any, name: str) -> Any:
    """Return a field of a part's config; None where it has none, or no config."""
    return getattr(getattr(part, "config", None), name, None)

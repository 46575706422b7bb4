"""What the checks share: one built model with inputs for it, and plain assertions."""

from __future__ import annotations

import functools
import math
import pickle
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.interfaces import Batch, Cond, Grid
from zoo.rng import Rng

ROWS = 4
"""Samples in a batch of the checks."""


def need(condition: Any, message: str) -> None:
    """Raise AssertionError with the message unless the condition holds."""
    __tracebackhide__ = True  # pytest then shows the line of the check
    if not bool(condition):
        raise AssertionError(message)


def close(a: Tensor, b: Tensor, message: str, tolerance: float = 1e-4) -> None:
    """Require equal shapes, and values equal up to `tolerance` of the larger one's greatest magnitude."""
    need(a.shape == b.shape, f"{message}: shapes {list(a.shape)} and {list(b.shape)}")
    a, b = a.detach().double(), b.detach().double()
    scale = max(1.0, float(a.abs().max()) if a.numel() else 0.0)
    worst = float((a - b).abs().max()) if a.numel() else 0.0
    need(worst <= tolerance * scale, f"{message}: they differ by {worst:.3g}")


@contextmanager
def global_random_state_kept(what: str) -> Iterator[None]:
    """Require that the block draws nothing from the global generators of torch, Python and NumPy."""
    torch_before, python_before, numpy_before = torch.get_rng_state(), random.getstate(), _numpy_state()
    yield
    need(torch.equal(torch_before, torch.get_rng_state()), f"{what} draws from torch's global generator; use `rng`")
    need(python_before == random.getstate(), f"{what} draws from Python's global generator; use `rng`")
    need(numpy_before == _numpy_state(), f"{what} draws from NumPy's global generator; use `rng`")


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread in the block: on small tensors more only add noise, and sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _numpy_state() -> str:
    return pickle.dumps(np.random.get_state()).hex()  # noqa: NPY002


class Pictures:
    """A small dataset of smooth coloured pictures with captions and labels; nothing is read from disk."""

    uri, split, classes, stochastic = "kit", "train", ("circle", "square", "cross"), False
    COLOURS = ("red", "blue", "green", "yellow")
    PLACES = ("above", "below", "beside")

    def __init__(self, size: int, rows: int = 48) -> None:
        self.size, self.rows = size, rows
        self.fingerprint = f"kit-{size}-{rows}"

    def __len__(self) -> int:
        return self.rows

    def caption(self, row: int) -> str:
        """Return the caption of a row."""
        c, p, s = self.COLOURS, self.PLACES, self.classes
        return f"a {c[row % 4]} {s[row % 3]} {p[row // 4 % 3]} a {c[(row // 2) % 4]} {s[(row // 3) % 3]}"

    def texts(self) -> Iterable[str]:
        """Yield every caption."""
        return (self.caption(row) for row in range(self.rows))

    def read(self, rows: Sequence[int], rng: Rng | None = None) -> Batch:
        """Return these rows."""
        coarse = Rng(7, list(rows)).uniform(3, 4, 4)
        images = F.interpolate(coarse, (self.size, self.size), mode="bilinear").clamp(0, 1)
        labels = torch.tensor([row % len(self.classes) for row in rows])
        return Batch(images=images, texts=tuple(self.caption(row) for row in rows), labels=labels)


class Case:
    """One model under test.

    Args:
        name: what messages call it.
        interface: the interface of what is tested.
        config: its bound config.
        make: seed -> the system; parts on the CPU.
    """

    def __init__(self, name: str, interface: str, config: Any, make: Callable[[int], Any]) -> None:
        self.name, self.interface, self.config, self.make = name, interface, config, make

    @functools.cached_property
    def system(self) -> Any:
        """The system, with weights, in evaluation mode; checks do not change it."""
        return self.fresh()

    @property
    def part(self) -> Any:
        """The part under test (the system itself for a generator)."""
        return self.of(self.system)

    def of(self, system: Any) -> Any:
        """Return the part under test of a system that `fresh` made."""
        return system if self.interface == "generator" else system.parts[self.interface]

    def fresh(self, seed: int = 0, fit: bool = True) -> Any:
        """Return a system of its own, fitted, with weights in which nothing is zero by its initialisation."""
        system = self.make(seed)
        for role, part in system.parts.items():
            if isinstance(part, nn.Module):
                stir(part, seed)
            if fit and hasattr(part, "fit"):
                part.fit(Pictures(self.image_size), seed=seed)
            system.mark_ready(role)
        return system.eval()

    @property
    def image_size(self) -> int:
        """Side of the pictures the model is for, pixels."""
        return getattr(self.config, "image_size", None) or 32

    @property
    def classes(self) -> int:
        """Number of labels the model knows."""
        return getattr(self.config, "classes", None) or len(Pictures.classes)

    def rng(self, seed: int = 0, rows: int = ROWS, step: int = 0) -> Rng:
        """Return a random source of `rows` rows."""
        return Rng(seed, range(rows), step=step)

    def images(self, rows: int = ROWS) -> Tensor:
        """Return pictures [rows,3,H,W]."""
        images = Pictures(self.image_size).read(range(rows)).images
        assert images is not None
        return images

    def grids(self, part: Any) -> tuple[Grid, ...]:
        """Return the code grids of a codebook's or prior's picture."""
        return part.grids(self.image_size, self.image_size) if callable(part.grids) else part.grids

    def codes(self, part: Any, rows: int = ROWS, seed: int = 0) -> Tensor:
        """Return random codes [rows,N]."""
        length = sum(h * w for h, w in self.grids(part))
        return Rng(seed, range(rows)).fork("codes").integers(part.vocab_size, length)

    def cond(self, rows: int = ROWS, seed: int = 0, **more: Tensor) -> Cond:
        """Return a random condition of what the config `reads`; all captions have as many tokens.

        (A loss may be averaged over the tokens of a batch, which equals a mean over samples of equal length.) The
        picture of the stage below, where the config has `low`, is the same for every seed.
        """
        reads, config, rng = getattr(self.config, "reads", "nothing"), self.config, Rng(seed, range(rows)).fork("cond")
        if getattr(config, "low", None):
            source = Rng(0, range(rows)).fork("low")
            low = source.normal(config.channels, *config.size)
            more = {"low": low, "low_level": 8 * source.uniform() - 4, **more}
        if reads == "label":
            return Cond(label=rng.integers(self.classes), **more)
        if reads == "ids":
            length = config.text_length
            mask = (torch.arange(length) < max(1, length // 2)).repeat(rows, 1)
            return Cond(ids=rng.integers(config.text_vocab, length), mask=mask, **more)
        if reads == "text":
            length = getattr(config, "text_length", None) or 5
            mask = (torch.arange(length) < max(1, length // 2)).repeat(rows, 1)
            text = rng.normal(length, config.text_width) * mask[..., None]
            return Cond(text=text, text_mask=mask, **more)
        return Cond(**more)

    def batch(self, part: Any, rows: int = ROWS) -> Batch:
        """Return a training batch: pictures, captions and labels, with codes for a prior and latents for a denoiser."""
        read = Pictures(self.image_size).read(range(rows))
        labels = Rng(1, range(rows)).integers(self.classes)
        extra: dict[str, Tensor] = {"labels": labels}
        if self.interface == "prior":
            extra["codes"] = self.codes(part, rows, seed=1)
        if self.interface == "denoiser":
            extra["z"] = self.z(rows)
        return Batch(images=read.images, texts=read.texts, **extra)

    def z(self, rows: int = ROWS, seed: int = 0) -> Tensor:
        """Return latents [rows,C,h,w] within [-1, 1] for a denoiser."""
        return Rng(seed, range(rows)).fork("z").uniform(self.config.channels, *self.config.size) * 2 - 1


def stir(module: nn.Module, seed: int) -> None:
    """Move every parameter away from its initial value: zero-initialised heads make everything agree."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            std = 1 / math.sqrt(p[0].numel()) if p.ndim >= 2 else 0.1
            p.add_(torch.randn(p.shape, generator=source).to(p) * std)


@functools.lru_cache(maxsize=4)
def case_of(name: str) -> Case | None:
    """Return the case of a card, or None when its card promises a small model and the config makes a large one.

    (`card_counts_the_parameters` says so; building it here could take all memory.) Nothing is built yet.
    """
    from zoo.construct import construct, count
    from zoo.resolution import resolve_tree
    from zoo.testing import SMALL

    node, config = resolve_tree(name)
    size = sum(count(part) for part in construct(node, config, device="meta").parts.values())
    if size >= SMALL:
        return None
    return Case(name, node.interface, config, lambda seed: construct(node, config, device="cpu", seed=seed))


def run(check: Callable[[Case], None], name: str) -> None:
    """Run one check on one card."""
    case = case_of(name)
    if case is not None:
        check(case)


def reloaded(part: nn.Module, other: nn.Module) -> nn.Module:
    """Return `other` with the weights of `part`, by way of a safetensors file."""
    from zoo.weights import load_into, load_tensors, save_tensors

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "part.safetensors"
        save_tensors(path, part.state_dict())
        load_into(other, load_tensors(path)[0], path)
    return other

"""Imagen's base U-Net beside public ones: a training step, a guided sampling step, and peak memory of training.

All have one width, one number of residual blocks, one resolution, and attention at the same levels, with as many tokens
of text; parameters and FLOPs of both are in the rows. In a sampling step what depends on the caption alone, less than
a hundredth of the work, is made before the clock starts, as `draw` makes it; the peers make it in each step.
`python -m zoo.bench.imagen paper NAME` times one forward pass of a card at full width, in bf16, of a small picture;
`python -m zoo.bench.imagen whole NAME` draws a picture of the card's own size through the sampler, and says the memory.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.bench.imagen_peers import PEERS, ImagenPytorch, Size
from zoo.bench.memory import resident
from zoo.bench.timing import Row, alternate, matmul_peak
from zoo.diffusion.config import Diffusing
from zoo.diffusion.guidance import guided
from zoo.diffusion.sampling import draw
from zoo.interfaces import Batch, Cond
from zoo.rng import Rng
from zoo.specs import locate

Call = Callable[[], Any]

GUIDANCE = 3.0
SIZES = {"": Size(), ", coarse attention": Size(attention=(2, 4))}
"""What is said of a size in a row's name -> the size: attention at every level, as imagen-pytorch has it where nothing
is said, and at all but the finest, as in the paper. The second is beside imagen-pytorch alone."""
CASES = (("train", 2), ("train", 8), ("sample", 1), ("sample", 8))
"""What is timed, at which batch."""


def our_model(size: Size) -> Any:
    """Return our denoiser; what begins as zero is given weights."""
    config = locate("zoo_imagen.configs:UNet")(
        width=size.width, mults=size.mults, blocks=size.blocks, attention=size.attention, text_channels=size.width,
        channels=3, size=(size.side, size.side), bounded=True, text_width=size.text_width, text_length=size.tokens,
    )  # fmt: skip
    return stirred(locate("zoo_imagen.model:unet")(config))


def stirred(model: nn.Module) -> Any:
    """Return the model with noise added to all its weights."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=source) * 0.02)
    return model


def inputs(size: Size, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return pictures, text embeddings and their mask."""
    source = torch.Generator().manual_seed(1)
    x = torch.rand(batch, 3, size.side, size.side, generator=source) * 2 - 1
    text = torch.randn(batch, size.tokens, size.text_width, generator=source)
    return x, text, torch.ones(batch, size.tokens, dtype=torch.bool)


def forward(model: Any, size: Size, batch: int) -> Call:
    """Return the call of one forward pass of training, to count what it computes."""
    x, text, mask = inputs(size, batch)
    level = torch.linspace(-3, 3, batch)
    if hasattr(model, "predict"):
        return torch.no_grad()(lambda: model.predict(x, level, Cond(text=text, text_mask=mask)).mean)
    return torch.no_grad()(lambda: model(x, level, text, mask))


def train(model: Any, size: Size, batch: int) -> Call:
    """Return the call of one update: noise, forward, backward, Adam."""
    x, text, mask = inputs(size, batch)
    cond, rng = Cond(text=text, text_mask=mask), Rng(0, range(batch))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

    def peer_loss() -> Tensor:
        noise, level = torch.randn_like(x), torch.rand(batch) * 6 - 3
        alpha, sigma = (k.sigmoid().sqrt()[:, None, None, None] for k in (level, -level))
        return (model(alpha * x + sigma * noise, level, text, mask) - noise).square().mean()

    def our_loss() -> Tensor:
        return model.loss(Batch(z=x), cond, step=0, rng=rng)["loss"]

    loss = our_loss if hasattr(model, "predict") else peer_loss

    def call() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        optimizer.step()

    return call


def sample(model: Any, size: Size, batch: int) -> Call:
    """Return the call of one guided sampling step: both predictions of each row, put together.

    Ours has its caption's keys and pooled embedding already; a peer's call makes them.
    """
    x, text, mask = inputs(size, batch)
    level = torch.zeros(batch)
    if not hasattr(model, "predict"):
        return torch.inference_mode()(lambda: model.guided(x, level, text, mask, GUIDANCE))
    with torch.inference_mode():
        predict = guided(model, Cond(text=text, text_mask=mask), GUIDANCE, batch, x.device)
    return torch.inference_mode()(lambda: predict(x, level).mean)


WORK: dict[str, Callable[[Any, Size, int], Call]] = {"train": train, "sample": sample}


def counted(call: Call) -> int:
    """Return the FLOPs of a call."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return int(counter.get_total_flops())


def beside(name: str, note: str, size: Size, pairs: int) -> Iterator[Row]:
    """Yield the timings beside one peer."""
    models = {"ours": our_model(size), "peer": stirred(PEERS[name](size))}
    numbers = {f"{who}_params": sum(p.numel() for p in model.parameters()) for who, model in models.items()}
    for what, batch in CASES:
        for model in models.values():
            model.train(what == "train")
        flops = {who: counted(forward(model, size, batch)) for who, model in models.items()}
        ours, peer = (WORK[what](model, size, batch) for model in models.values())
        work = counted(ours)
        timing = alternate(ours, peer, pairs)
        said = {f"{who}_forward_mflops": count // 10**6 for who, count in flops.items()}
        yield Row(
            name=f"imagen {what} step, batch {batch}{note}, beside {name}",
            ours=timing.ours,
            peer=timing.peer,
            ratio=timing.ratio,
            unit="s",
            sizes={**size.sizes(batch), **numbers, **said},
            peak_share=work / timing.ours / matmul_peak(),
        )


def peak(which: str, note: str, batch: int) -> int:
    """Return the bytes by which updates raise this process's highest memory: weights' gradients and moments too."""
    size = SIZES[note]
    model = our_model(size) if which == "ours" else stirred(PEERS[which](size))
    call = train(model.train(), size, batch)
    before = resident("VmRSS")
    for _ in range(2):
        call()
    return max(resident("VmHWM") - before, 0)


def memory_rows(names: Iterable[str], note: str, batch: int) -> Iterator[Row]:
    """Yield the peak memory of a training step beside each peer, each measured in a process of its own."""

    def measured(which: str) -> float:
        command = [sys.executable, "-m", "zoo.bench.imagen", "peak", which, note, str(batch)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 2**20

    ours = measured("ours")
    for name in names:
        peer = measured(name)
        row = f"imagen train, peak memory, batch {batch}{note}, beside {name}"
        yield Row(row, ours, peer, peer / ours, "MiB", SIZES[note].sizes(batch))


def rows(pairs: int = 5) -> list[Row]:
    """Return all rows.

    Raises:
        NotInstalled: a peer is missing.
    """
    torch.manual_seed(0)
    result: list[Row] = []
    for note, size in SIZES.items():
        names = list(PEERS) if not note else [ImagenPytorch.name]
        for name in names:
            result += beside(name, note, size, pairs)
        for batch in (2, 8):
            result += memory_rows(names, note, batch)
    return result


def paper(name: str) -> str:
    """Return what one forward pass of a card takes at full width, in bf16, on a picture of 4 coarsest places a side."""
    import zoo

    start = time.perf_counter()
    denoiser: Any = zoo.build(name, device="cpu", dtype=torch.bfloat16)
    built, side = time.perf_counter() - start, 4 * denoiser.config.factor
    z = torch.randn(1, denoiser.config.channels, side, side)
    cond = _condition(denoiser.config, z.clone())
    start = time.perf_counter()
    with torch.inference_mode():
        mean = denoiser.predict(z, torch.zeros(1), cond).mean
    took = time.perf_counter() - start
    shape, sound = list(mean.shape), "finite" if mean.isfinite().all() else "not finite"
    return f"{name}: built in {built:.1f} s, predicted {shape} in {took:.1f} s, {sound}"


def whole(name: str) -> str:
    """Return what it takes to draw one picture of a card's own size with random weights, in bf16: two guided steps."""
    import zoo

    denoiser = stirred(zoo.build(name, device="cpu", dtype=torch.bfloat16)).eval()
    shape = denoiser.config.channels, *denoiser.config.size
    cond = _condition(denoiser.config, Rng(1, range(1)).normal(*shape).clamp(-1, 1))
    before, start = resident("VmRSS"), time.perf_counter()
    with torch.inference_mode():
        z = draw(denoiser, cond, shape, Diffusing(sampler="ddim", steps=2, guidance=GUIDANCE), Rng(0, range(1)))
    took, sound = time.perf_counter() - start, "finite" if z.isfinite().all() else "not finite"
    weights, most = before / 2**30, resident("VmHWM") / 2**30
    return f"{name}: drew {list(z.shape)} in {took:.0f} s, {sound}; {most:.1f} GiB at its peak, {weights:.1f} before"


def _condition(config: Any, low: Tensor) -> Cond:
    """Return a random caption of full length, and the picture of the stage below where a card has one."""
    text = torch.randn(1, config.text_length, config.text_width)
    mask = torch.ones(1, config.text_length, dtype=torch.bool)
    return Cond(text=text, text_mask=mask, **({"low": low, "low_level": torch.zeros(1)} if config.low else {}))


if __name__ == "__main__":
    torch.set_num_threads(2)
    what, which, *rest = sys.argv[1:]
    if what == "peak":
        print(peak(which, rest[0], int(rest[1])))
    else:
        print({"paper": paper, "whole": whole}[what](which))

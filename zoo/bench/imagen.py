"""Imagen's base U-Net beside imagen-pytorch's: a training step, a guided sampling step, and peak memory of training.

Both have one width, residual blocks, resolution, and attention that reads as many text tokens at the same levels. The
networks are not the same: parameters and FLOPs of both are in the rows. `python -m zoo.bench.imagen paper NAME` times
one forward pass at full width, in bf16, of a small picture.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from zoo.bench.memory import resident
from zoo.bench.timing import Row, alternate, matmul_peak
from zoo.diffusion.guidance import guided
from zoo.errors import NotInstalled
from zoo.interfaces import Batch, Cond
from zoo.rng import Rng
from zoo.specs import locate

Calls = tuple[Callable[[], Any], Callable[[], Any]]

GUIDANCE = 3.0
MISSING = "this benchmark needs imagen-pytorch: pip install 'image-zoo[bench]'"


@attrs.frozen(kw_only=True)
class Size:
    """What fixes the amount of work."""

    width: int = 64
    mults: tuple[int, ...] = (1, 2, 4)
    blocks: int = 3
    """Residual blocks a level on the way down, one more on the way up; both sides have 27 at these sizes."""
    attention: tuple[int, ...] = (2, 4)
    """Reductions of the sides at which there is attention."""
    side: int = 32
    """Of the picture."""
    text_width: int = 512
    tokens: int = 32

    def sizes(self, batch: int) -> dict[str, int]:
        """Return what a row says."""
        said = {"width": self.width, "levels": len(self.mults), "blocks": self.blocks, "side": self.side}
        return {**said, "tokens": self.tokens, "batch": batch}


def our_model(size: Size) -> Any:
    """Return our denoiser; what begins as zero is given weights."""
    config = locate("zoo_imagen.configs:UNet")(
        width=size.width, mults=size.mults, blocks=size.blocks, attention=size.attention, text_channels=size.width,
        channels=3, size=(size.side, size.side), bounded=True, text_width=size.text_width, text_length=size.tokens,
    )  # fmt: skip
    return _stirred(locate("zoo_imagen.model:unet")(config))


def peer_model(size: Size) -> nn.Module:
    """Return imagen-pytorch's U-Net.

    Raises:
        NotInstalled: it is missing.
    """
    attends = tuple(2**i in size.attention for i in range(len(size.mults)))
    # A level's first block there, which reads the text, is the fourth on the way up; the last block of all, which has
    # the first level's width, and one block more on each way down, stand for ours that resample.
    net = peer_module().Unet(
        dim=size.width, dim_mults=size.mults, num_resnet_blocks=size.blocks, text_embed_dim=size.text_width,
        max_text_len=size.tokens, layer_attns=attends, layer_cross_attns=attends,
    )  # fmt: skip
    return _stirred(net)


def peer_module() -> Any:
    """Return the module with imagen-pytorch's networks, without its trainer's and data's dependencies.

    Raises:
        NotInstalled: it, or what it needs, is missing.
    """
    spec = importlib.util.find_spec("imagen_pytorch")
    if spec is None or spec.submodule_search_locations is None:
        raise NotInstalled(MISSING)
    try:
        _without_broken_torchvision()
        from transformers import T5Config

        # Its defaults ask the network for the width of a text encoder, which is not used here.
        asked = T5Config.from_pretrained
        T5Config.from_pretrained = classmethod(lambda cls, name: types.SimpleNamespace(d_model=768))
        package = types.ModuleType("imagen_pytorch")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["imagen_pytorch"] = package
        try:
            return importlib.import_module("imagen_pytorch.imagen_pytorch")
        finally:
            T5Config.from_pretrained = asked
    except ImportError as error:
        raise NotInstalled(f"{MISSING} ({error})") from error


def _without_broken_torchvision() -> None:
    """Put empty modules in the place of a torchvision that was built for another torch; the networks do without it."""
    try:
        importlib.import_module("torchvision")
        return
    except (ImportError, RuntimeError):
        sys.modules["torchvision"] = None  # type: ignore[assignment]
    from transformers import T5EncoderModel  # noqa: F401  while it finds none, it does without

    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        sys.modules[name] = types.ModuleType(name)
    for name in ("transforms", "utils"):
        setattr(sys.modules["torchvision"], name, sys.modules[f"torchvision.{name}"])


def _stirred(model: nn.Module) -> Any:
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


def forwards(ours: Any, peer: nn.Module, size: Size, batch: int) -> Calls:
    """Return the two calls of one forward pass of training, to count what they compute."""
    x, text, mask = inputs(size, batch)
    level, cond = torch.linspace(-3, 3, batch), Cond(text=text, text_mask=mask)
    return (
        lambda: ours.predict(x, level, cond).mean,
        lambda: peer(x, level, text_embeds=text, text_mask=mask),
    )


def training(ours: Any, peer: nn.Module, size: Size, batch: int) -> Calls:
    """Return the two calls that make one update: noise, forward, backward, Adam."""
    x, text, mask = inputs(size, batch)
    cond, rng = Cond(text=text, text_mask=mask), Rng(0, range(batch))

    def update(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)

        def call() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            optimizer.step()

        return call

    def peer_loss() -> Tensor:
        noise, level = torch.randn_like(x), torch.rand(batch) * 6 - 3
        alpha, sigma = (k.sigmoid().sqrt()[:, None, None, None] for k in (level, -level))
        found = peer(alpha * x + sigma * noise, level, text_embeds=text, text_mask=mask, cond_drop_prob=0.1)
        return (found - noise).square().mean()

    def our_loss() -> Tensor:
        return ours.loss(Batch(z=x), cond, step=0, rng=rng)["loss"]

    return update(ours, our_loss), update(peer, peer_loss)


def sampling(ours: Any, peer: Any, size: Size, batch: int) -> Calls:
    """Return the two calls of one guided sampling step: both predictions of each row, put together."""
    x, text, mask = inputs(size, batch)
    level = torch.zeros(batch)
    with torch.inference_mode():
        predict = guided(ours, Cond(text=text, text_mask=mask), GUIDANCE, batch, x.device)

    def sample_ours() -> Tensor:
        with torch.inference_mode():
            return predict(x, level).mean

    def sample_peer() -> Tensor:
        with torch.inference_mode():
            return peer.forward_with_cond_scale(
                x, level, text_embeds=text, text_mask=mask, cond_scale=GUIDANCE, remove_parallel_component=False
            )

    return sample_ours, sample_peer


def counted(call: Callable[[], Any]) -> int:
    """Return the FLOPs of a call."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call()
    return int(counter.get_total_flops())


MODELS: Mapping[str, Callable[[Size], Any]] = {"ours": our_model, "peer": peer_model}


def peak(which: str, batch: int) -> int:
    """Return the bytes by which updates raise this process's highest memory: weights' gradients and moments too."""
    size = Size()
    model = MODELS[which](size).train()
    call = training(model, model, size, batch)[which == "peer"]
    before = resident("VmRSS")
    for _ in range(2):
        call()
    return max(resident("VmHWM") - before, 0)


def memory_row(batch: int) -> Row:
    """Return the peak memory of a training step, each measured in a process of its own."""

    def measured(which: str) -> int:
        command = [sys.executable, "-m", "zoo.bench.imagen", which, str(batch)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])

    ours, peer = (measured(which) / 2**20 for which in MODELS)
    return Row(f"imagen train, peak memory, batch {batch}", ours, peer, peer / ours, "MiB", Size().sizes(batch))


def rows(pairs: int = 5) -> list[Row]:
    """Return all rows.

    Raises:
        NotInstalled: imagen-pytorch is missing.
    """
    torch.manual_seed(0)
    size = Size()
    models = ours, peer = our_model(size), peer_model(size)
    cases = [
        ("train", training, 2, 3),
        ("train", training, 16, 3),
        ("sample", sampling, 1, 2),
        ("sample", sampling, 8, 2),
    ]
    result = []
    for what, calls, batch, passes in cases:
        for each in models:
            each.train(what == "train")
        flops = [counted(call) for call in forwards(ours, peer, size, batch)]
        numbers = {
            f"{name}_{unit}": value
            for name, model, work in zip(("ours", "peer"), models, flops, strict=True)
            for unit, value in (
                ("params", sum(p.numel() for p in model.parameters())),
                ("forward_mflops", work // 10**6),
            )
        }
        mine, theirs = calls(ours, peer, size, batch)
        timing = alternate(mine, theirs, pairs)
        result.append(
            Row(
                name=f"imagen {what} step, batch {batch}, beside imagen-pytorch",
                ours=timing.ours,
                peer=timing.peer,
                ratio=timing.ratio,
                unit="s",
                sizes={**size.sizes(batch), **numbers},
                peak_share=passes * flops[0] / timing.ours / matmul_peak(),
            )
        )
    return [*result, memory_row(2), memory_row(16)]


def paper(name: str) -> str:
    """Return what one forward pass of a card takes at full width, in bf16, on a picture of 4 coarsest places a side."""
    import zoo

    start = time.perf_counter()
    denoiser: Any = zoo.build(name, device="cpu", dtype=torch.bfloat16)
    built, c = time.perf_counter() - start, denoiser.config
    side = 4 * c.factor
    z = torch.randn(1, c.channels, side, side)
    low = {"low": z.clone(), "low_level": torch.zeros(1)} if c.low else {}
    text = torch.randn(1, c.text_length, c.text_width)
    cond = Cond(text=text, text_mask=torch.ones(1, c.text_length, dtype=torch.bool), **low)
    start = time.perf_counter()
    with torch.inference_mode():
        mean = denoiser.predict(z, torch.zeros(1), cond).mean
    took = time.perf_counter() - start
    return f"{name}: built in {built:.1f} s, predicted {tuple(mean.shape)} in {took:.1f} s, finite: {bool(mean.isfinite().all())}"


if __name__ == "__main__":
    torch.set_num_threads(2)
    first, second = sys.argv[1:]
    print(paper(second) if first == "paper" else peak(first, int(second)))

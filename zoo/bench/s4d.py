"""The S4D layer beside state-spaces/s4's: training and drawing, 384 channels over 4096 positions, and memory.

Both are the same function of the same weights, which is checked before anything is timed: convolution, skip, GELU, a
product of width twice the channels, GLU. The peer is one file, `models/s4/s4d.py` of github.com/state-spaces/s4, which
comes in no package; the environment variable S4D_FILE says where it is. It needs einops.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zoo.bench.memory import resident
from zoo.bench.timing import Row, alternate
from zoo.errors import NotInstalled
from zoo.nn.s4d import S4D

CHANNELS, LENGTH = 384, 4096
BATCHES = (1, 4)
CLOSE = 1e-4
"""Largest relative difference of outputs, and of gradients, in fp32."""


class Ours(nn.Module):
    """The peer's layer of our parts, channels last; its B stays 1."""

    def __init__(self, peer: Any) -> None:
        super().__init__()
        self.s4d = S4D(peer.h, state=peer.n)
        self.mix = nn.Sequential(nn.GELU(), nn.Linear(peer.h, 2 * peer.h), nn.GLU(-1))
        theirs = {key.removeprefix("kernel."): x for key, x in peer.state_dict().items()}
        weight = theirs.pop("output_linear.0.weight")[..., 0]
        self.mix[1].load_state_dict({"weight": weight, "bias": theirs.pop("output_linear.0.bias")})
        self.s4d.causal.load_state_dict({"B": self.s4d.causal.B.detach(), **theirs})

    def forward(self, u: Tensor) -> Tensor:
        """Return [B,L,H] of the same."""
        made: Tensor = self.mix(self.s4d(u))
        return made


def public() -> Any:
    """Return the peer's module.

    Raises:
        NotInstalled: its file, or what it imports, is missing.
    """
    path = os.environ.get("S4D_FILE", "")
    if not os.path.isfile(path):
        raise NotInstalled(
            "this benchmark needs a file of state-spaces/s4: git clone https://github.com/state-spaces/s4, and set "
            "S4D_FILE to its models/s4/s4d.py"
        )
    spec = importlib.util.spec_from_file_location("public_s4d", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        with _stubs():
            spec.loader.exec_module(module)
    except ImportError as error:
        raise NotInstalled(f"state-spaces/s4's s4d.py does not load: pip install einops ({error})") from error
    return module


@contextlib.contextmanager
def _stubs() -> Iterator[None]:
    """Have the one module of its repository that the file imports, with the dropout of which nothing is used here."""
    stubs = {name: types.ModuleType(name) for name in ("src", "src.models", "src.models.nn")}
    stubs["src.models.nn"].DropoutNd = nn.Identity  # type: ignore[attr-defined]
    hidden = {name: sys.modules.pop(name) for name in stubs if name in sys.modules}
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in stubs:
            del sys.modules[name]
        sys.modules.update(hidden)


class Peer(nn.Module):
    """The public layer, called with [B,L,H]; its own layout is [B,H,L].

    Raises:
        NotInstalled: it is missing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = public().S4D(CHANNELS)

    def forward(self, u: Tensor) -> Tensor:
        """Return [B,L,H]."""
        made: Tensor = self.layer(u.mT)[0].mT
        return made


def sides() -> dict[str, nn.Module]:
    """Return both layers, "ours" and "peer".

    Raises:
        NotInstalled: the peer is missing.
    """
    torch.manual_seed(0)
    peer = Peer()
    return {"ours": Ours(peer.layer), "peer": peer}


def train(layer: nn.Module, u: Tensor) -> Tensor:
    """Run the layer forwards and backwards; return the gradient of the input."""
    u = u.clone(memory_format=torch.preserve_format).requires_grad_()
    layer(u).square().mean().backward()
    assert u.grad is not None
    return u.grad


@torch.inference_mode()
def draw(layer: nn.Module, u: Tensor) -> Tensor:
    """Run the layer forwards in eval mode."""
    made: Tensor = layer.eval()(u)
    layer.train()
    return made


WORK: Mapping[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "forward and backward": train,
    "drawing (ours makes its kernel once, the peer each time)": draw,
}


def check(layers: Mapping[str, nn.Module], u: Tensor) -> None:
    """Raise AssertionError unless both sides agree in value and in gradient."""
    for made in WORK.values():
        ours, peer = made(layers["ours"], u), made(layers["peer"], u)
        far = float((ours - peer).norm() / peer.norm())
        assert far < CLOSE, f"the layers differ by {far:.1e}"


def peak(which: str, batch: int) -> int:
    """Return the bytes by which training raises this process's highest memory, weights' gradients included."""
    layer, u = sides()[which], inputs(which, batch)
    before = resident("VmRSS")
    for _ in range(2):
        train(layer, u)
    return max(resident("VmHWM") - before, 0)


def inputs(which: str, batch: int) -> Tensor:
    """Return [B,L,H], in memory as the side would have it."""
    u = torch.randn(batch, LENGTH, CHANNELS, generator=torch.Generator().manual_seed(1))
    return u if which == "ours" else u.mT.contiguous().mT


def memory(which: str, batch: int) -> float:
    """Return `peak` of a process of its own, in MiB."""
    command = [sys.executable, "-m", "zoo.bench.s4d", which, str(batch)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 2**20


def rows(pairs: int = 5) -> list[Row]:
    """Return all rows.

    Raises:
        NotInstalled: the peer is missing.
        AssertionError: the two layers are not the same function.
    """
    layers = sides()
    check(layers, inputs("ours", 1))
    result: list[Row] = []
    for batch in BATCHES:
        sizes = {"channels": CHANNELS, "length": LENGTH, "state": 64, "batch": batch}
        u = {which: inputs(which, batch) for which in layers}
        for what, work in WORK.items():
            ours, peer = (functools.partial(work, layer, u[which]) for which, layer in layers.items())
            timing = alternate(ours, peer, pairs=pairs)
            result.append(Row(f"s4d, {what}, batch {batch}", timing.ours, timing.peer, timing.ratio, "s", sizes))
        used = {which: memory(which, batch) for which in layers}
        name, ratio = f"s4d, peak memory of training, batch {batch}", used["peer"] / used["ours"]
        result.append(Row(name, used["ours"], used["peer"], ratio, "MiB", sizes))
    return result


if __name__ == "__main__":
    torch.set_num_threads(2)
    print(peak(sys.argv[1], int(sys.argv[2])))

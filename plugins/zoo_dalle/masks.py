"""Which earlier codes each kind of layer sees. One set of raster distances says it all.

With q and k positions of a query and a key in the raster order of an h x w grid, every mask of [1] appendix B.1
depends on q - k alone, because its windows wrap around the ends of rows. So a kind of layer is a set of distances:

    row      0 .. w: the code itself and the w codes before it, back to the same column of the row above
    column   0, w, 2w, ...: the same column
    conv     every distance >= 0 from a code of the window of `kernel` columns and the rows down to its centre

All see the whole text, in one softmax with the codes. Text sees earlier text only.

Letters: P prefix (text) positions, N = h*w codes, L = P + N.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from zoo.parts import Grid
from zoo_dalle.attention import blocked, dense, window_bias
from zoo_dalle.configs import Kind, distances


def visible(kind: Kind, prefix: int, grid: Grid, kernel: int, device: torch.device | str | None = None) -> Tensor:
    """Return [L,L] bool, True where the query (row) sees the key (column)."""
    h, w = grid
    n, length = h * w, prefix + h * w
    seen = torch.zeros(n, dtype=torch.bool)
    seen[list(distances(kind, grid, kernel))] = True
    position = torch.arange(n)
    distance = position[:, None] - position
    mask = torch.zeros(length, length, dtype=torch.bool)
    mask[:prefix, :prefix] = torch.ones(prefix, prefix, dtype=torch.bool).tril_()
    mask[prefix:, :prefix] = True
    mask[prefix:, prefix:] = (distance >= 0) & seen[distance.clamp(min=0)]
    return mask.to(device)


BLOCKED_FROM = 256
"""Codes from which row and column layers run in blocks. Below, one dense call is faster."""


class Masks:
    """The masks of one model, made on first use and kept for each device.

    They are neither parameters nor buffers: a model built on the meta device, or moved, has nothing to fill in.
    """

    def __init__(self, prefix: int, grid: Grid, kernel: int) -> None:
        self.prefix, self.grid, self.kernel = prefix, grid, kernel
        self._made: dict[tuple[str, Kind, torch.device], Tensor] = {}

    def dense(self, kind: Kind, length: int, device: torch.device) -> Tensor:
        """Return [length,length] bool of the leading positions."""
        made = self._keep("dense", kind, device, lambda: visible(kind, self.prefix, self.grid, self.kernel, device))
        return made[:length, :length]

    def wants_whole(self, device: torch.device) -> bool:
        """Return True where a stream is cheaper with its last code than without it, because then it has blocks."""
        return device.type == "cpu" and self.grid[0] * self.grid[1] >= BLOCKED_FROM

    def attend(self, kind: Kind, length: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Return the attention of a layer on `length` leading positions (see `zoo_dalle.attention`)."""
        whole = length == self.prefix + self.grid[0] * self.grid[1]
        if kind == "conv" or not whole or not self.wants_whole(device):
            return partial(dense, mask=self.dense(kind, length, device))
        bias = self._keep("blocks", kind, device, lambda: window_bias(kind, self.grid, device))
        return partial(blocked, prefix=self.prefix, grid=self.grid, kind=kind, bias=bias)

    def _keep(self, what: str, kind: Kind, device: torch.device, make: Callable[[], Tensor]) -> Tensor:
        if (what, kind, device) not in self._made:
            # A tensor born in inference mode could not serve a later training step.
            with torch.inference_mode(False):
                self._made[what, kind, device] = make()
        return self._made[what, kind, device]

    def __deepcopy__(self, memo: dict[int, object]) -> Masks:
        return Masks(self.prefix, self.grid, self.kernel)

    def __reduce__(self) -> tuple[type, tuple[int, Grid, int]]:
        return Masks, (self.prefix, self.grid, self.kernel)

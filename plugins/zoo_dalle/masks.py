"""Which positions each kind of layer sees, and the attention that serves it.

`zoo_dalle.configs.Kind` says which earlier codes a code sees. All kinds see the whole text, in one softmax with the
codes ([1] section 2.2), and text sees earlier text only.

Letters: P prefix (text) positions, N = h*w codes, L = P + N, G blocks of S codes, W codes of a block's run.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from zoo.parts import Grid
from zoo_dalle.attention import dense
from zoo_dalle.banded import Band, banded
from zoo_dalle.blocked import blocked
from zoo_dalle.configs import Kind, reach, seen


def visible(kind: Kind, prefix: int, grid: Grid, kernel: int, device: torch.device | str | None = None) -> Tensor:
    """Return [L,L] bool, True where the query (row) sees the key (column)."""
    n = grid[0] * grid[1]
    mask = torch.ones(prefix + n, prefix + n, dtype=torch.bool).tril_()
    for i in range(n):
        row = mask[prefix + i, prefix:].fill_(False)
        row[list(seen(kind, grid, kernel, i))] = True
    return mask.to(device)


def band(kind: Kind, prefix: int, grid: Grid, kernel: int, device: torch.device) -> Band:
    """Return how a kind other than "full" is computed in blocks."""
    h, w = grid
    if kind == "column":
        earlier = torch.ones(h, h, dtype=torch.bool).tril_().expand(w, h, h)
        return Band(prefix, h, w, by_column=True, bias=_bias(earlier, device))
    before = min(reach(kind, grid, kernel), (h - 1) * w)
    inside = torch.zeros(h, w, before + w, dtype=torch.bool)
    for i in range(h * w):
        row, column = divmod(i, w)
        inside[row, column, [before + code - row * w for code in seen(kind, grid, kernel, i)]] = True
    return Band(prefix, h, w, by_column=False, bias=_bias(inside, device))


def _bias(inside: Tensor, device: torch.device) -> Tensor:
    return torch.zeros(inside.shape).masked_fill(~inside, float("-inf")).to(device)


BLOCKED: Mapping[Kind, range] = {"row": range(128, 500), "column": range(128, 500)}
"""Codes for which a CPU works in blocks whose weights are kept."""
BANDED_FROM: Mapping[Kind, int] = {"row": 500, "column": 500, "conv": 300, "window": 300}
"""Codes from which it works in blocks otherwise. For fewer, one dense call is faster, forward and backward."""


class Masks:
    """The masks of one model, made on first use and kept for each device.

    They are neither parameters nor buffers: a model built on the meta device, or moved, has nothing to fill in.
    """

    def __init__(self, prefix: int, grid: Grid, kernel: int) -> None:
        self.prefix, self.grid, self.kernel = prefix, grid, kernel
        self._made: dict[tuple[str, Kind, torch.device], Tensor | Band] = {}

    def dense(self, kind: Kind, length: int, device: torch.device) -> Tensor:
        """Return [length,length] bool of the leading positions."""
        made = self._keep("dense", kind, device, partial(visible, kind, self.prefix, self.grid, self.kernel, device))
        assert isinstance(made, Tensor)
        return made[:length, :length]

    def attend(self, kind: Kind, length: int, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Return the attention of a layer on `length` leading positions (see `zoo_dalle.attention`)."""
        if kind == "full":
            return partial(dense, mask=None)
        codes = length - self.prefix
        small = codes in BLOCKED.get(kind, ())
        if device.type != "cpu" or (not small and codes < BANDED_FROM[kind]):
            return partial(dense, mask=self.dense(kind, length, device))
        made = self._keep("band", kind, device, partial(band, kind, self.prefix, self.grid, self.kernel, device))
        assert isinstance(made, Band)
        return partial(blocked if small else banded, band=made)

    def _keep(self, what: str, kind: Kind, device: torch.device, make: Callable[[], Tensor | Band]) -> Tensor | Band:
        if (what, kind, device) not in self._made:
            # A tensor born in inference mode could not serve a later training step.
            with torch.inference_mode(False):
                self._made[what, kind, device] = make()
        return self._made[what, kind, device]

    def __deepcopy__(self, memo: dict[int, object]) -> Masks:
        return Masks(self.prefix, self.grid, self.kernel)

    def __reduce__(self) -> tuple[type, tuple[int, Grid, int]]:
        return Masks, (self.prefix, self.grid, self.kernel)

"""Attention whose cost follows its mask: queries in blocks, each against the whole text and a short run of codes.

In raster order a block is a row of the grid and its run the rows that the layer's window reaches; column attention
takes the codes column by column, and a block sees itself alone ([1] appendix B.1). Text and run are two calls of the
fused CPU kernel behind `scaled_dot_product_attention`, the one op that also hands out the logarithm of every query's
sum, by which the two softmaxes become one. Its backward pass makes the scores again, block by block, so nothing of a
score's size is kept or ever there at once; given the joint output and sum it returns each part's gradients [2].

Letters: B rows of the batch, L positions, H heads, E head width, P prefix positions, n codes, G blocks of S codes, W
codes of a block's run.

[1] A. Ramesh et al.: Zero-Shot Text-to-Image Generation. arXiv:2102.12092
[2] T. Dao et al.: FlashAttention. arXiv:2205.14135, appendix B
"""

from __future__ import annotations

from typing import Any

import attrs
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


AT_ONCE = 1 << 19
"""Values of the runs' keys' gradients that are in hand at a time."""


@attrs.frozen(eq=False)
class Band:
    """How the rows of a grid are cut, and what a query sees of its run."""

    prefix: int
    """P."""
    rows: int
    columns: int
    by_column: bool
    """Whether a block is a column; else a row."""
    bias: Tensor
    """[G,S,W] float, 0 where a query sees a key of its run and -inf elsewhere. A run ends with its block's last
    code, and may begin before the first code, where nothing is seen."""

    @property
    def before(self) -> int:
        """Codes of a run before its block."""
        return self.bias.shape[2] - self.bias.shape[1]

    def leading(self, codes: int) -> Band:
        """Return the band of the rows that hold so many leading codes."""
        rows = -(-codes // self.columns)
        bias = self.bias[:, :rows, :rows] if self.by_column else self.bias[:rows]
        return attrs.evolve(self, rows=rows, bias=bias)

    def blocks(self, x: Tensor) -> Tensor:
        """Return [H,G,S,...] of [H,n,...]; codes that the last row lacks are zeros."""
        grid = _padded(x, 0, self.rows * self.columns - x.shape[1]).unflatten(1, (self.rows, self.columns))
        return grid.transpose(1, 2) if self.by_column else grid

    def raster(self, x: Tensor, codes: int) -> Tensor:
        """Undo `blocks`: return the leading codes [H,n,...] of [H,G,S,...]."""
        return (x.transpose(1, 2) if self.by_column else x).flatten(1, 2)[:, :codes]

    def runs(self, x: Tensor) -> Tensor:
        """Return each block's run [H,G,W,E] of codes [H,n,E]; runs overlap in memory where blocks share codes."""
        if self.by_column:
            return self.blocks(x)
        _, size, width = self.bias.shape
        led = _padded(x, self.before, self.rows * size - x.shape[1])
        return led.as_strided(
            (len(x), self.rows, width, x.shape[2]), (led.stride(0), size * led.stride(1), led.stride(1), 1)
        )

    def add_runs(self, x: Tensor, codes: int) -> Tensor:
        """Return [H,n,E], for every code the sum over all runs [H,G,W,E] that hold it."""
        if self.by_column:
            return self.raster(x, codes)
        heads, groups, width, e = x.shape
        size = self.bias.shape[1]
        length = self.before + groups * size
        total = x.new_zeros(heads, length, e)
        for start in range(0, width, size):  # pieces no wider than a block do not overlap each other
            piece = x[:, :, start : start + size]
            total.as_strided(piece.shape, (length * e, size * e, e, 1), start * e).add_(piece)
        return total[:, self.before : self.before + codes]


def banded(qkv: Tensor, band: Band) -> Tensor:
    """Return [B,P+n,H*E] for queries, keys and values [B,P+n,3,H,E] on a CPU; the text sees earlier text only."""
    codes = qkv.shape[1] - band.prefix
    if codes < 1:  # the kernel divides by their number
        raise ValueError("attention in blocks is of one code or more")
    # The kernel takes what is in one piece along a head's width, and looks at no stride.
    qkv = qkv if qkv.stride(-1) == 1 else qkv.contiguous()
    made: Tensor = _Banded.apply(qkv, band.leading(codes))
    return made.flatten(2)


class _Banded(torch.autograd.Function):
    """Some samples after the others, so that what is in hand does not grow with the batch."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, band: Band) -> Tensor:
        out = qkv.new_empty(qkv.shape[:2] + qkv.shape[3:])
        sums = torch.empty(len(qkv), qkv.shape[3], qkv.shape[1], dtype=_sums_of(qkv), device=qkv.device)
        bias = band.bias[None].to(qkv.dtype)
        some = _samples(qkv)
        for x, y, s in zip(qkv.split(some), out.split(some), sums.split(some), strict=True):
            made = _folded(y.transpose(1, 2), filled=False)
            _forward(_folded(x.permute(2, 0, 3, 1, 4), 1), band, bias, made, s.flatten(0, 1))
            _unfold(made, y.transpose(1, 2))
        ctx.save_for_backward(qkv, out, sums, bias)
        ctx.band = band
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        qkv, out, sums, bias = ctx.saved_tensors
        into = torch.empty_like(qkv)
        some = _samples(qkv)
        for x, g, y, s, d in zip(*(t.split(some) for t in (qkv, grad, out, sums, into)), strict=True):
            to = d.permute(2, 0, 3, 1, 4)
            made = _folded(to, 1, filled=False)
            given = _folded(g.transpose(1, 2)), _folded(y.transpose(1, 2)), s.flatten(0, 1)
            _backward(_folded(x.permute(2, 0, 3, 1, 4), 1), ctx.band, bias, *given, made)
            _unfold(made, to, 1)
        return into, None


def _samples(qkv: Tensor) -> int:
    """Return how many samples of [B,L,3,H,E] are worked on at a time."""
    return max(1, 3 * AT_ONCE // qkv[0].numel())


def _folded(x: Tensor, at: int = 0, *, filled: bool = True) -> Tensor:
    """Return [...,B*H,...] of [...,B,H,...]: a view of one sample, else a copy (or room for one)."""
    if x.shape[at] == 1:
        return x.squeeze(at)
    shape = *x.shape[:at], -1, *x.shape[at + 2 :]
    return x.reshape(shape) if filled else x.new_empty(x.shape).view(shape)


def _unfold(made: Tensor, into: Tensor, at: int = 0) -> None:
    """Copy [...,B*H,...] into [...,B,H,...], where it is not a view of it."""
    if into.shape[at] > 1:
        into.copy_(made.view(into.shape))


def _forward(qkv: Tensor, band: Band, bias: Tensor, out: Tensor, sums: Tensor) -> None:
    """Fill out [H,L,E] and sums [H,L] of one sample [3,H,L,E]."""
    text, image = qkv.split((band.prefix, qkv.shape[2] - band.prefix), 2)
    (y, log), at = _attend(*text[:, None], is_causal=True), band.prefix
    out[:, :at], sums[:, :at] = y[0], log[0]
    of_text, text_sum = (x[0] for x in _attend(image[None, 0], *text[1:, None]))
    of_run, run_sum = (
        band.raster(x, image.shape[2])
        for x in _attend(band.blocks(image[0]), band.runs(image[1]), band.runs(image[2]), attn_mask=bias)
    )
    both = torch.logaddexp(text_sum, run_sum, out=sums[:, at:])
    out[:, at:] = of_text * (text_sum - both).exp()[..., None] + of_run * (run_sum - both).exp()[..., None]


def _backward(
    qkv: Tensor, band: Band, bias: Tensor, grad: Tensor, out: Tensor, sums: Tensor, into: Tensor
) -> None:  # fmt: skip
    """Fill into [3,H,L,E] with the gradients of one sample, for those of its output [H,L,E]."""
    at, n = band.prefix, qkv.shape[2] - band.prefix
    text, image = qkv.split((at, n), 2)
    whole = grad, out, sums
    g, y, s = (x[None, :, :at] for x in whole)
    for part, x in zip(into, _attend_backward(g, *text[:, None], y, s, 0.0, True), strict=True):
        part[:, :at] = x[0]
    g, y, s = (x[None, :, at:] for x in whole)
    dq, dk, dv = _attend_backward(g, image[None, 0], *text[1:, None], y, s, 0.0, False)
    into[0, :, at:] = dq[0]
    into[1, :, :at] += dk[0]
    into[2, :, :at] += dv[0]
    g, y, s, q = (band.blocks(x[:, at:]) for x in (*whole, qkv[0]))
    k, v = band.runs(image[1]), band.runs(image[2])
    # The runs' gradients are several times the codes': those of some heads at a time.
    some = max(1, AT_ONCE // (k[0].numel()))
    for h in range(0, len(q), some):
        of = slice(h, h + some)
        dq, dk, dv = _attend_backward(g[of], q[of], k[of], v[of], y[of], s[of], 0.0, False, attn_mask=bias)
        into[0, of, at:] += band.raster(dq, n)
        into[1, of, at:] = band.add_runs(dk, n)
        into[2, of, at:] = band.add_runs(dv, n)


def _padded(x: Tensor, before: int, after: int) -> Tensor:
    """Return [H,before + n + after,...] of [H,n,...], with zeros; `x` itself where there is nothing to add."""
    return F.pad(x, (0, 0) * (x.dim() - 2) + (before, after)) if before or after else x


def _sums_of(x: Tensor) -> torch.dtype:
    """Return the type of the kernel's sums."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32

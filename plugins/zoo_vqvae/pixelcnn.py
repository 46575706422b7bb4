"""A gated PixelCNN over one grid of codes: a Prior.

Letters: B batch, C channels of a stack, S channels of the condition, h w code grid, N = h·w, n <= N, T text tokens.

Two stacks: v[r, c] knows the rows above r, x[r, c] also the codes left of c in row r; together they know every code
before (r, c) in raster order, without the blind spot of masked convolutions. [1] §2.1-2.2. The masks are made by
padding and cropping, so no weight is multiplied by zero: what a place must not see never enters a sum.

[1] A. van den Oord et al.: Conditional image generation with PixelCNN decoders. arXiv:1606.05328.
[2] J. Ho, T. Salimans: Classifier-free diffusion guidance. arXiv:2207.12598.
"""

from __future__ import annotations

from typing import cast

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.errors import ConfigError, PartMismatch
from zoo.interfaces import Batch, Cond, Losses
from zoo.nn.quantise import wide
from zoo.nn.residual import Residual
from zoo.nn.sampling import check_guidance, check_prefix, check_sampling, draw, guide
from zoo.rng import Rng
from zoo_vqvae.condition import Condition
from zoo_vqvae.configs import PixelCnn as PixelCnnConfig


def gate(x: Tensor) -> Tensor:
    """tanh of the first half of the channels times sigmoid of the second. [1] eq. (2)"""
    a, b = x.chunk(2, dim=1)
    return a.tanh() * b.sigmoid()


class Vertical(nn.Module):
    """One layer of the stack that knows the rows above.

    Args:
        first: exclude the input's own row, as the input is the codes themselves (mask A).
    """

    def __init__(self, width: int, condition: int, kernel: int, first: bool) -> None:
        super().__init__()
        self.side, self.rows, self.above = kernel // 2, kernel // 2 + 1, kernel // 2 + first
        self.conv = nn.Conv2d(width, 2 * width, (self.rows, kernel))
        self.bias = nn.Conv2d(condition, 2 * width, 1, bias=False)

    def forward(self, v: Tensor, bias: Tensor) -> Tensor:
        """Return the values in front of the gate, [B,2C,h,w]."""
        padded = F.pad(v, (self.side, self.side, self.above, 0))
        return self.conv(padded[:, :, : v.shape[2] + self.rows - 1]) + bias

    def row(self, padded: Tensor, r: int, bias: Tensor) -> Tensor:
        """Return row r of `forward`, [B,2C,1,w], of an input padded as there."""
        return self.conv(padded[:, :, r : r + self.rows]) + bias


class Horizontal(nn.Module):
    """One layer of the stack that also knows the codes to the left: the branch of a residual sum."""

    def __init__(self, width: int, condition: int, kernel: int, first: bool) -> None:
        super().__init__()
        self.columns, self.left = kernel // 2 + 1, kernel // 2 + first
        self.conv = nn.Conv2d(width, 2 * width, (1, self.columns))
        self.link = nn.Conv2d(2 * width, 2 * width, 1, bias=False)
        self.bias = nn.Conv2d(condition, 2 * width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, pre: Tensor, s: Tensor) -> Tensor:
        """Return [B,C,h,w] of x, the vertical stack's values in front of its gate, and the condition."""
        padded = F.pad(x, (self.left, 0, 0, 0))
        y = self.conv(padded[..., : x.shape[3] + self.columns - 1]) + self.link(pre) + self.bias(s)
        return self.out(gate(y))

    def at(self, window: Tensor, rest: Tensor) -> Tensor:
        """Return one place [B,C] of its window [B,C,columns] and the sum of link and condition there [B,2C]."""
        y = F.linear(window.flatten(1), self.conv.weight.flatten(1), self.conv.bias) + rest
        return F.linear(gate(y), self.out.weight.flatten(1), self.out.bias)


class Layer(nn.Module):
    """Both stacks of one layer. The vertical one has no residual sum, as in [1] figure 2."""

    def __init__(self, width: int, condition: int, kernel: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.vertical = Vertical(width, condition, kernel, first)
        horizontal = Horizontal(width, condition, kernel, first)
        # The first layer's input is the code to be predicted: an identity path would show it.
        self.horizontal = horizontal if first else Residual(horizontal)

    @property
    def branch(self) -> Horizontal:
        """The horizontal convolutions, without their residual sum."""
        return cast(Horizontal, self.horizontal if self.first else self.horizontal.branch)

    def forward(self, v: Tensor, x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """Return the stacks' next values for a condition [B,S,h,w] or [B,S,1,1]."""
        pre = self.vertical(v, self.vertical.bias(s))
        return gate(pre), self.horizontal(x, pre, s)


class Zero(nn.Conv2d):
    """A convolution that begins as zero."""

    def __init__(self, n_in: int, n_out: int, kernel: int) -> None:
        super().__init__(n_in, n_out, kernel)
        for p in self.parameters():
            nn.init.zeros_(p)


class PixelCnn(nn.Module):
    """A causal prior whose cost per code does not grow with the grid.

    Raises:
        ConfigError: a field that other parts decide is missing.
        PartMismatch: the codebook has more than one grid.
    """

    causal = True

    def __init__(self, config: PixelCnnConfig) -> None:
        super().__init__()
        if config.vocab_size is None or not config.grids:
            raise ConfigError("vocab_size, grids: a prior is built beside a codebook, which decides them")
        if len(config.grids) > 1:
            raise PartMismatch(
                f"a PixelCNN models one grid of codes and this codebook has {len(config.grids)}: "
                "take a codebook with one code per position"
            )
        self.config, self.vocab_size, self.grids = config, config.vocab_size, config.grids
        self.rows, self.columns = config.grids[0]
        self.length = self.rows * self.columns
        width = config.width
        self.embed = nn.Embedding(self.vocab_size, width)
        self.condition = Condition(config, self.rows, self.columns)
        self.layers = nn.ModuleList(Layer(width, width, config.kernel, i == 0) for i in range(config.layers))
        last = Zero(config.head, self.vocab_size, 1)  # every code equally likely: the first loss is ln K
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(width, config.head, 1), nn.ReLU(), last)

    def logits(self, codes: Tensor, cond: Cond) -> Tensor:
        """Return [B,n,K] for codes [B,n]; column i sees codes < i only."""
        return self._logits(codes, self.condition(cond, len(codes), cond.drop))

    def _logits(self, codes: Tensor, s: Tensor) -> Tensor:
        n = codes.shape[1]
        if n > self.length:
            raise ConfigError(f"codes: {n} are more than the {self.length} of a picture")
        rows = -(-n // self.columns)
        grid = F.pad(codes, (0, rows * self.columns - n)).view(len(codes), rows, self.columns)
        v = x = self.embed(grid).permute(0, 3, 1, 2)
        s = s[:, :, :rows]
        for layer in self.layers:
            v, x = layer(v, x, s)
        return wide(self.head(x)).flatten(2)[..., :n].transpose(1, 2)

    def loss(self, batch: Batch, cond: Cond, *, step: int, rng: Rng) -> Losses:
        """Return the mean of -log p(code) in nats per code, and the share of codes guessed right."""
        codes = batch.codes
        if codes is None:
            raise ConfigError("batch.codes: a prior is trained on codes")
        drop = cond.drop
        if self.training and self.config.cond_drop > 0:
            drawn = rng.fork("cond_drop").uniform(device=codes.device) < self.config.cond_drop
            drop = drawn if drop is None else drop | drawn
        logits = self._logits(codes, self.condition(cond, len(codes), drop))
        loss = F.cross_entropy(logits.flatten(0, 1), codes.flatten())
        with torch.no_grad():
            accuracy = (logits.argmax(-1) == codes).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    @torch.no_grad()
    def log_prob(self, codes: Tensor, cond: Cond | None = None) -> Tensor:
        """Return log p(z) [B] in nats of codes [B,N]."""
        logits = self.logits(codes, cond or Cond())
        return -F.cross_entropy(logits.transpose(1, 2), codes, reduction="none").sum(1)

    @torch.no_grad()
    def sample(
        self,
        cond: Cond,
        *,
        batch: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance: float = 1.0,
        rng: Rng,
        prefix: Tensor | None = None,
    ) -> Tensor:
        """Return codes [B,N], drawn one after the other; see `zoo.interfaces.Prior`.

        Raises:
            ConfigError: a setting is out of range, guidance without a learned null condition, or a bad prefix.
        """
        check_sampling(temperature, top_k, top_p)
        check_guidance(guidance, self.config.cond_drop)
        given = 0 if prefix is None else check_prefix(prefix, batch, self.length, self.vocab_size)
        device = self.embed.weight.device
        s = self.condition(cond, batch, cond.drop)
        if guidance != 1:
            s = torch.cat([s, self.condition(cond, batch, torch.ones(batch, dtype=torch.bool, device=device))])
        state = _State(self, s)
        u = rng.fork("codes").uniform(self.length, device=device)
        free = torch.full((batch, self.length), -1, dtype=torch.int64, device=device)
        codes = free if prefix is None else prefix.to(device, copy=True)
        for i in range(self.length):
            hidden = state.hidden(i)
            if i >= given:
                logits = self.head(hidden[:, :, None, None])[:, :, 0, 0]
                drawn = draw(guide(logits, guidance) if guidance != 1 else logits, u[:, i], temperature, top_k, top_p)
                codes[:, i] = torch.where(codes[:, i] >= 0, codes[:, i], drawn)
            state.put(i, self.embed(codes[:, i].repeat(len(s) // batch)))
        return codes


@attrs.define(eq=False, init=False)
class _State:
    """What sampling remembers: the inputs of every layer, padded, so that each value is computed once.

    The vertical stack advances a row at a time, the horizontal one a code at a time.
    """

    layers: list[Layer]
    columns: int
    above: list[Tensor]
    """Input of every vertical layer, [B,C,rows + above,w + 2 side], padded."""
    left: list[Tensor]
    """Input of every horizontal layer in the present row, [B,C,w + left], padded."""
    bias_v: list[Tensor]
    bias_x: list[Tensor]
    rest: list[Tensor]
    """Link and condition of every horizontal layer in the present row, [B,2C,w]."""

    def __init__(self, prior: PixelCnn, s: Tensor) -> None:
        self.layers, self.columns = cast(list[Layer], list(prior.layers)), prior.columns
        s = s.expand(-1, -1, prior.rows, prior.columns)
        b, c = len(s), prior.config.width
        stacks = [(layer.vertical, layer.branch) for layer in self.layers]
        self.above = [s.new_zeros(b, c, prior.rows + v.above, prior.columns + 2 * v.side) for v, _ in stacks]
        self.left = [s.new_zeros(b, c, prior.columns + x.left) for _, x in stacks]
        self.bias_v = [v.bias(s) for v, _ in stacks]
        self.bias_x = [x.bias(s) for _, x in stacks]
        self.rest = []

    def hidden(self, i: int) -> Tensor:
        """Return the last layer's horizontal value [B,C] at place i; all codes before it must have been put."""
        r, c = divmod(i, self.columns)
        if c == 0:
            self._begin(r)
        x = self._place(0, c)
        for j in range(1, len(self.layers)):
            self.left[j][:, :, c + self.layers[j].branch.left] = x
            x = x + self._place(j, c)
        return x

    def _place(self, j: int, c: int) -> Tensor:
        """Return the branch [B,C] of layer j at column c of the present row."""
        branch = self.layers[j].branch
        return branch.at(self.left[j][:, :, c : c + branch.columns], self.rest[j][:, :, c])

    def _begin(self, r: int) -> None:
        """Compute row r of the vertical stack, which needs the rows above only."""
        self.rest = []
        for j, layer in enumerate(self.layers):
            pre = layer.vertical.row(self.above[j], r, self.bias_v[j][:, :, r : r + 1])
            self.rest.append((layer.branch.link(pre) + self.bias_x[j][:, :, r : r + 1])[:, :, 0])
            if j + 1 < len(self.layers):
                following = self.layers[j + 1].vertical
                side = following.side
                self.above[j + 1][:, :, r + following.above, side : side + self.columns] = gate(pre)[:, :, 0]
            self.left[j].zero_()

    def put(self, i: int, x: Tensor) -> None:
        """Enter the embedding [B,C] of the code at place i."""
        r, c = divmod(i, self.columns)
        vertical, branch = self.layers[0].vertical, self.layers[0].branch
        self.above[0][:, :, r + vertical.above, c + vertical.side] = x
        self.left[0][:, :, c + branch.left] = x

"""Vector quantisation: a code for every vector of a tensor [B,D,...] of any rank.

A quantiser is made of a codebook (how the codes learn: `GradientCodes`, `EmaCodes`) and an estimator (how the gradient
passes: `straight_through`, `rotate`). It computes in fp32 (fp64 for fp64 input), also under autocast. `zoo.nn.fsq` has
the same interface without a codebook.

Letters: B samples, D width, K codes, N vectors (B times the positions of one sample).

[1] A. van den Oord, O. Vinyals, K. Kavukcuoglu: Neural discrete representation learning. arXiv:1711.00937.
[2] C. Fifty et al.: Restructuring vector quantization with the rotation trick. arXiv:2410.06424.
[3] D. Arthur, S. Vassilvitskii: k-means++, the advantages of careful seeding. SODA 2007.
[4] P. Efraimidis, P. Spirakis: Weighted random sampling with a reservoir. Inf. Process. Lett. 97, 2006.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoo.nn import across
from zoo.nn.precision import full_precision, wide
from zoo.rng import Rng

_BLOCK = 1 << 24
"""Distances held at once: 64 MB in fp32, whatever N and K."""


@attrs.frozen(eq=False)
class Quantised:
    """What a quantiser answers in training."""

    z: Tensor
    """[B,D,...] the codes' vectors, with the estimator's gradient to the input."""
    codes: Tensor
    """[B,...] int64 in [0, K)."""
    loss: Tensor
    """[B] codebook term + beta * commitment term, means over positions and D."""
    curves: Mapping[str, Tensor]
    """Scalars worth a curve, detached: perplexity in [1, K], usage in (0, 1] ..."""


def nearest(z_ND: Tensor, book_KD: Tensor) -> Tensor:
    """Return the index [N] of the code nearest to each vector; the first of equals.

    |z - e|² = |z|² - 2 z·e + |e|², of which |z|² is the same for all codes: one product does it.
    """
    square_K = book_KD.square().sum(1)
    rows = max(1, min(len(z_ND), _BLOCK // len(book_KD)))
    buffer = z_ND.new_empty(rows, len(book_KD))
    found = [
        torch.addmm(square_K, z, book_KD.T, alpha=-2, out=buffer[: len(z)]).argmin(1)
        for z in (z_ND.split(rows) if len(z_ND) else ())
    ]
    return torch.cat(found) if found else z_ND.new_empty(0, dtype=torch.int64)


def straight_through(z: Tensor, e: Tensor) -> Tensor:
    """Return e, bit for bit, with the identity as gradient to z. [1] §3.1"""
    return e.detach() + (z - z.detach())


def rotate(z_ND: Tensor, e_ND: Tensor) -> Tensor:
    """Return e as a fixed rotation and scaling of z, whose gradient is that map's. [2]"""
    with torch.no_grad():
        tiny = torch.finfo(z_ND.dtype).tiny
        long_z = z_ND.norm(dim=1, keepdim=True).clamp_min(tiny)
        long_e = e_ND.norm(dim=1, keepdim=True)
        from_ND, to_ND = z_ND / long_z, e_ND / long_e.clamp_min(tiny)
        middle_ND = F.normalize(from_ND + to_ND, dim=1)
        scale = long_e / long_z
    mirrored = z_ND - 2 * (z_ND * middle_ND).sum(1, keepdim=True) * middle_ND
    return scale * (mirrored + 2 * (z_ND * from_ND).sum(1, keepdim=True) * to_ND)


ESTIMATORS: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "straight-through": straight_through,
    "rotation": rotate,
}


def usage(counts_K: Tensor) -> tuple[Tensor, Tensor]:
    """Return (share of codes used, perplexity in [1, K]) of a histogram of codes."""
    p = counts_K.double() / counts_K.sum().clamp_min(1e-30)
    return (counts_K > 0).double().mean().float(), torch.special.entr(p).sum().exp().float()


class GradientCodes(nn.Module):
    """K vectors learned by |sg[z] - e|², the paper's own choice. [1] eq. (3)

    A revived code is moved by a buffer, not by writing to the parameter: averaged weights, sharded masters and the
    optimiser's moments know nothing of a jump inside the forward pass.
    """

    shift: Tensor

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.shape = count, width
        self.weight = nn.Parameter(uniform_codes(count, width))
        self.register_buffer("shift", torch.zeros(count, width))

    def forward(self) -> Tensor:
        """Return the codes [K,D]."""
        return wide(self.weight) + self.shift

    def term(self, z_ND: Tensor, e_ND: Tensor) -> Tensor:
        """Return the codebook term [N]: its gradient reaches the chosen codes only."""
        return (z_ND.detach() - e_ND).square().mean(1)

    def learn(self, z_ND: Tensor, codes_N: Tensor, used_K: Tensor, counts_K: Tensor, weight: Tensor) -> None:
        """Nothing: the optimiser learns these."""

    def replace(self, rows: Tensor, vectors: Tensor, book_KD: Tensor, count: Tensor) -> None:
        """Put `vectors` in the place of these codes."""
        self.shift[rows] += (vectors - book_KD[rows]).to(self.shift)


class EmaCodes(nn.Module):
    """K vectors that are the running means of the inputs that chose them. [1] appendix A.1

    The averages are bias corrected by a step weight (1 - γ)/(1 - γ^t), so that the first update moves a code to the
    mean of its vectors. A code that this batch did not choose is left as it is, bit for bit: its count and its sum
    decay together, so their quotient has not changed, and no code is ever divided by a count near zero.
    """

    vectors: Tensor
    sums: Tensor

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.shape = count, width
        self.register_buffer("vectors", uniform_codes(count, width))
        self.register_buffer("sums", torch.zeros(count, width))

    def forward(self) -> Tensor:
        """Return the codes [K,D]."""
        return wide(self.vectors)

    def term(self, z_ND: Tensor, e_ND: Tensor) -> Tensor:
        """Return zeros [N]: these codes have no loss."""
        return z_ND.new_zeros(len(z_ND))

    def learn(self, z_ND: Tensor, codes_N: Tensor, used_K: Tensor, counts_K: Tensor, weight: Tensor) -> None:
        """Take one step of the running sums; `used_K` and the sums are those of the whole global batch."""
        batch_KD = across.sum(torch.zeros_like(self.sums).index_add_(0, codes_N, z_ND.to(self.sums)))
        self.sums.lerp_(batch_KD, weight.to(self.sums))
        self.vectors.copy_(torch.where(used_K[:, None] > 0, self.sums / counts_K[:, None], self.vectors))

    def replace(self, rows: Tensor, vectors: Tensor, book_KD: Tensor, count: Tensor) -> None:
        """Put `vectors` in the place of these codes, as if `count` inputs had chosen each."""
        self.vectors[rows] = vectors.to(self.vectors)
        self.sums[rows] = (vectors * count).to(self.sums)


class VectorQuantiser(nn.Module):
    """The nearest of K vectors. [1] eq. (1)-(3)

    The paper's norms are sums over D; these are means over D, as in the authors' own code, so that beta and the
    learning rate do not depend on the width.

    Args:
        codes: `GradientCodes` or `EmaCodes`.
        beta: weight of the commitment term. [1] eq. (3)
        estimator: a key of `ESTIMATORS`.
        decay: γ of the running counts (and of the codes, when they are running means).
        revive_below: a code whose running count is under this share of K-th of the vectors is dead, and is put where
            a vector of the batch is, drawn in proportion to its squared error [3], without replacement [4]; 0: never.
    """

    counts: Tensor
    updates: Tensor

    def __init__(
        self,
        codes: GradientCodes | EmaCodes,
        *,
        beta: float = 0.25,
        estimator: str = "straight-through",
        decay: float = 0.99,
        revive_below: float = 0.03,
    ) -> None:
        super().__init__()
        self.vocab_size, self.width = codes.shape
        self.codes = codes
        self.beta, self.decay, self.revive_below = beta, decay, revive_below
        self._estimate = ESTIMATORS[estimator]
        self.register_buffer("counts", torch.zeros(self.vocab_size))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    @property
    def whole_batch(self) -> bool:
        """True when a training pass changes the codes, so that it must see the whole global batch at once."""
        return self.revive_below > 0 or isinstance(self.codes, EmaCodes)

    def forward(self, z: Tensor, rng: Rng | None = None) -> Quantised:
        """Quantise z [B,D,...]; in training also learn, and revive dead codes where `rng` is given."""
        with full_precision(z):
            z_ND = _rows(wide(z))
            book_KD = self.codes()
            codes_N = nearest(z_ND.detach(), book_KD.detach())
            e_ND = F.embedding(codes_N, book_KD)
            error_N = (z_ND - e_ND.detach()).square().mean(1)
            loss_N = self.codes.term(z_ND, e_ND) + self.beta * error_N
            q = _restore(self._estimate(z_ND, e_ND.detach()), z)
            used_K = torch.bincount(codes_N, minlength=self.vocab_size).to(z_ND)
            revived = 0
            if self.training:
                broken = (~error_N.detach().isfinite()).sum().to(used_K)
                used_K, broken = across.sum(torch.cat([used_K, broken[None]])).split([self.vocab_size, 1])
                if not broken:  # a step that will be skipped must not poison the codes
                    with torch.no_grad():
                        self._learn(z_ND, codes_N, used_K)
                        revived = self._revive(z_ND, error_N, book_KD, used_K.sum(), rng) if rng is not None else 0
        curves = code_curves(used_K)
        curves["commitment"] = error_N.detach().mean()
        curves["revived"] = torch.tensor(float(revived), device=z.device)
        loss = loss_N.view(len(z), -1).mean(1)
        return Quantised(q, codes_N.view(len(z), *z.shape[2:]), loss, curves)

    def _learn(self, z_ND: Tensor, codes_N: Tensor, used_K: Tensor) -> None:
        self.updates += 1
        weight = (1 - self.decay) / (1 - self.decay ** self.updates.double())
        self.counts.lerp_(used_K.to(self.counts), weight.to(self.counts))
        self.codes.learn(z_ND, codes_N, used_K, self.counts, weight)

    def _revive(self, z_ND: Tensor, error_N: Tensor, book_KD: Tensor, total: Tensor, rng: Rng) -> int:
        """Replace dead codes; the outcome depends on the global batch, not on how ranks share it."""
        threshold = (self.revive_below * total / self.vocab_size).to(self.counts)
        dead = (self.counts < threshold).nonzero().squeeze(1)
        if len(dead) == 0:
            return 0
        u_N = rng.fork("revival").uniform(len(z_ND) // len(rng), device=z_ND.device).flatten().to(z_ND)
        key_N = u_N.log() / error_N.clamp_min(torch.finfo(z_ND.dtype).tiny)  # [4]: the largest keys win
        chosen = key_N.topk(min(len(dead), len(z_ND))).indices
        found = across.gather(torch.cat([key_N[chosen, None], z_ND[chosen]], dim=1))
        best = found[:, 0].topk(min(len(dead), len(found))).indices
        rows = dead[: len(best)]
        self.codes.replace(rows, found[best, 1:], book_KD, threshold)
        self.counts[rows] = threshold
        return len(rows)

    def encode(self, z: Tensor) -> Tensor:
        """Return the codes [B,...] of z [B,D,...]."""
        with full_precision(z):
            return nearest(_rows(wide(z.detach())), self.codes().detach()).view(len(z), *z.shape[2:])

    def decode(self, codes: Tensor) -> Tensor:
        """Return the vectors [B,D,...] of codes [B,...]."""
        return F.embedding(codes, self.codes()).movedim(-1, 1)

    def continuous(self, z: Tensor) -> Tensor:
        """Return what `snap` takes: z itself."""
        return z

    def snap(self, z: Tensor) -> Tensor:
        """Return the vector of the nearest code in each place of z [B,D,...]."""
        return self.decode(self.encode(z))

    def rms(self) -> Tensor:
        """Return the root mean square of the codes' entries, weighted by how often each is used."""
        p_K = self.counts + (self.counts.sum() == 0)
        return ((p_K / p_K.sum()) @ self.codes().detach().square().mean(1).to(p_K)).sqrt()


def uniform_codes(count: int, width: int) -> Tensor:
    """Return [K,D] drawn from U(-√(3/D), √(3/D)): variance 1/D, as in the authors' code."""
    return nn.init.uniform_(torch.empty(count, width), -math.sqrt(3 / width), math.sqrt(3 / width))


def code_curves(used_K: Tensor) -> dict[str, Tensor]:
    """Return the curves every codebook reports, of a histogram of codes."""
    share, perplexity = usage(used_K)
    return {"perplexity": perplexity, "usage": share}


def _rows(x: Tensor) -> Tensor:
    """[B,D,...] to [N,D]."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def _restore(x_ND: Tensor, like: Tensor) -> Tensor:
    """[N,D] to the shape of `like` [B,D,...]."""
    return x_ND.view(len(like), *like.shape[2:], like.shape[1]).movedim(-1, 1)

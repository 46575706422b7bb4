"""Vector quantisation beside vector-quantize-pytorch: 8192 codes of width 512 on 8192 vectors, forward and backward."""

from __future__ import annotations

import torch

from zoo.bench.timing import Row, alternate, matmul_peak
from zoo.errors import NotInstalled
from zoo.nn.quantise import EmaCodes, VectorQuantiser

CODES, WIDTH, VECTORS = 8192, 512, 8192


def rows(pairs: int = 5) -> list[Row]:
    """Return the benchmark's rows.

    Both sides learn by running means with the same decay and commitment, and revive nothing.

    Raises:
        NotInstalled: the peer is missing.
    """
    try:
        from vector_quantize_pytorch import VectorQuantize
    except ImportError as error:
        raise NotInstalled("vector-quantize-pytorch is not installed: pip install 'image-zoo[bench]'") from error

    torch.manual_seed(0)
    ours = VectorQuantiser(EmaCodes(CODES, WIDTH), beta=0.25, decay=0.99, revive_below=0.0)
    peer = VectorQuantize(
        dim=WIDTH, codebook_size=CODES, decay=0.99, commitment_weight=0.25, rotation_trick=False, straight_through=False
    )
    z = torch.randn(8, VECTORS // 8, WIDTH)

    def step_ours() -> None:
        x = z.movedim(-1, 1).contiguous().requires_grad_()
        out = ours(x)
        (out.z.square().mean() + out.loss.mean()).backward()

    def step_peer() -> None:
        x = z.clone().requires_grad_()
        quantised, _, loss = peer(x)
        (quantised.square().mean() + loss.sum()).backward()

    timing = alternate(step_ours, step_peer, pairs=pairs)
    needed = 2 * VECTORS * CODES * WIDTH
    sizes = {"codes": CODES, "width": WIDTH, "vectors": VECTORS, "threads": torch.get_num_threads()}
    share = needed / timing.ours / matmul_peak()
    return [Row("vq-ema", timing.ours, timing.peer, timing.ratio, "s", sizes, share)]

"""Peak memory of a process that draws 64 and 512 candidates of one caption, and keeps the best.

A small transformer draws grids of 1,024 codes, a small dVAE decodes them to 256 px, CLIP scores them: 512 such
pictures alone are 384 MiB. Measured is the highest resident memory of a process of its own, above what it had when the
model was built. The ratio is that of 512 candidates to 64; a generator that kept every picture would need 8 times as
much for them. Takes two minutes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import Any

from zoo.bench.memory import resident
from zoo.bench.timing import Row

MODEL = "dalle"
SIZE = (
    "image_size=256", "codebook.groups=4", "codebook.n_hid=8", "codebook.n_init=16", "prior.width=64", "prior.depth=2",
)  # fmt: skip
"""8 pixels a code, as in the paper's dVAE."""
CAPTION = "a red circle above a blue square"
FEW, MANY, CHUNK = 64, 512, 32


def work(count: int, size: tuple[str, ...], chunk: int) -> dict[str, Any]:
    """Draw so many candidates in this process; return its memory before, at most and what was drawn."""
    import torch

    import zoo
    from zoo.data.shapes import open_shapes

    torch.set_num_threads(1)
    g = zoo.build(MODEL, overrides=size)
    for role in ("tokenizer", "reranker.tokenizer"):
        g.parts[role].fit(open_shapes("n=256", split="train", size=32), seed=0)
    before, began = resident("VmRSS"), time.monotonic()
    g.generate([CAPTION], rerank=count, chunk=chunk, allow_untrained=True)
    side = g.config.image_size
    return {"before": before, "peak": resident("VmHWM"), "seconds": time.monotonic() - began,
            "codes": g.prior.length, "side": side, "picture": 3 * side * side * 4}  # fmt: skip


def measure(count: int, size: tuple[str, ...] = SIZE, chunk: int = CHUNK) -> dict[str, Any]:
    """Return what `work` says in a process of its own.

    Raises:
        CalledProcessError: it failed.
    """
    command = [sys.executable, "-m", "zoo.bench.candidates", str(count), str(chunk), *size]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def rows(size: tuple[str, ...] = SIZE, few: int = FEW, many: int = MANY, chunk: int = CHUNK) -> list[Row]:
    """Return the memory above that of the built model, in MiB: ours of many candidates, the peer's of few."""
    ours, peer = (measure(count, size, chunk) for count in (many, few))
    above = [(found["peak"] - found["before"]) / 2**20 for found in (ours, peer)]
    sizes = {
        "few": few, "many": many, "chunk": chunk, "codes": ours["codes"], "side": ours["side"],
        "pictures_mib": many * ours["picture"] >> 20, "process_mib": ours["peak"] >> 20,
        "seconds": round(ours["seconds"]),
    }  # fmt: skip
    what = f"peak memory of {many} candidates beside that of {few}"
    return [Row(what, above[0], above[1], above[0] / above[1], "MiB", sizes)]


if __name__ == "__main__":
    count, chunk, *size = sys.argv[1:]
    print(json.dumps(work(int(count), tuple(size), int(chunk))))

"""Sums and gathers over the global batch: nothing in one process, the whole batch in several."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import distributed as dist

from zoo.nn import across


def test_one_process_is_the_identity() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    assert across.sum(x) is x
    assert across.gather(x) is x


def rows() -> torch.Tensor:
    """Return the global batch: two rows a rank."""
    return torch.arange(8.0).view(4, 2).double() + 1


def one_rank(rank: int, size: int, folder: str) -> None:
    """Be one process of the group."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    across.set_group(dist.group.WORLD)
    mine = rows().chunk(size)[rank].clone().requires_grad_()
    total = across.sum(mine.sum())
    gathered = across.gather(mine)
    # Each rank's loss uses every row; the gradient of the sum of all ranks' losses reaches each row.
    ((rank + 1) * gathered.pow(2).sum()).backward()
    torch.save({"total": total, "gathered": gathered.detach(), "grad": mine.grad}, f"{folder}/{rank}.pt")
    dist.barrier()
    os._exit(0)  # the backend's threads may abort on the way out


def test_two_processes_see_each_others_rows_with_gradient(tmp_path: Path) -> None:
    command = [sys.executable, __file__]
    ranks = [subprocess.Popen([*command, str(rank), "2", str(tmp_path)]) for rank in range(2)]
    assert [process.wait() for process in ranks] == [0, 0]
    for rank in range(2):
        answer = torch.load(tmp_path / f"{rank}.pt")
        assert not answer["total"].requires_grad
        assert float(answer["total"]) == float(rows().sum())
        assert torch.equal(answer["gathered"], rows())
        assert torch.equal(answer["grad"], (1 + 2) * 2 * rows().chunk(2)[rank])


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])

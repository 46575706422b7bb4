"""Ranks as threads of one process, so that a whole group's arithmetic is seen at once and in float64."""

import threading
from concurrent.futures import ThreadPoolExecutor

import torch

from zoo.interfaces import Grad


class Room:
    """Where the ranks of a group meet."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.barrier = threading.Barrier(size)
        self.places: list = [None] * size

    def meet(self, rank: int, x: torch.Tensor) -> list[torch.Tensor]:
        """Return what every rank brought, in their order."""
        self.places[rank] = x
        self.barrier.wait(60)
        brought = [y.clone() for y in self.places]
        self.barrier.wait(60)
        return brought


class Exchange:
    """A rank's collectives, as `zoo_powersgd.exchange.Exchange`, in a room instead of a process group."""

    def __init__(self, room: Room, rank: int) -> None:
        self.room, self.rank, self.size, self.sent = room, rank, room.size, 0

    def sum_(self, flat):
        self.sent += flat.numel() * flat.element_size()
        total, *others = self.room.meet(self.rank, flat)
        for other in others:
            total = total + other
        return flat.copy_(total)

    def swap(self, rows):
        self.sent += rows.numel() * rows.element_size()
        return torch.stack([theirs[self.rank] for theirs in self.room.meet(self.rank, rows)])

    def collect(self, row):
        return torch.stack(self.room.meet(self.rank, row))


class Ranks:
    """A group of reducers, one a rank, that reduce together."""

    def __init__(self, reducer, config, size: int, seed: int = 0) -> None:
        self.size = size
        room = Room(size)
        self.reducers = [
            reducer(config, seed=seed, exchange=lambda group, rank=rank: Exchange(room, rank)) for rank in range(size)
        ]

    def each(self, do):
        """Return `do(rank, reducer)` of every rank, run at the same time."""

        def one(rank):
            try:
                return do(rank, self.reducers[rank])
            except BaseException:
                self.room_of(rank).barrier.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(one, range(self.size)))

    def room_of(self, rank):
        return self.reducers[rank]._exchange(None).room

    def step(self, tensors, *, applied=None, **kinds):
        """Reduce rank k's tensors {name: x}, and settle; return the answers and the tensors that were left.

        Args:
            tensors: a mapping a rank; the tensors are copied.
            applied: whether the update is made; None: where it is finite.
            kinds: see `grads`.
        """

        def do(rank, reducer):
            mine = {name: x.clone() for name, x in tensors[rank].items()}
            reduced = reducer.reduce(grads(mine, **kinds), "the room")
            if reduced.decompress is not None:
                reduced.decompress(reduced.finite if applied is None else applied)
            return reduced, mine

        return self.each(do)

    def states(self):
        return self.each(lambda rank, reducer: reducer.state_dict())


def grads(tensors, *, shapes=None, axis=None, plain=()):
    """Yield gradients of named tensors; `plain` ones are no matrices, and `shapes` are those of whole parameters."""
    for name, x in tensors.items():
        shape = (shapes or {}).get(name, tuple(x.shape))
        yield Grad(name, x, shape, axis, None, len(shape) >= 2 and name not in plain)


def random(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low(seed, rows, columns, rank):
    """Return a matrix of this rank."""
    return random(seed, rows, rank) @ random(seed + 1, rank, columns)


def spread(mean, size, seed=99):
    """Return matrices of full rank whose mean this is."""
    parts = [mean + random(seed + k, *mean.shape) for k in range(size)]
    off = sum(parts) / size - mean
    return [part - off for part in parts]

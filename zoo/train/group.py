"""Several processes: how they meet, and how one that is missing is found.

A launcher (`torchrun`, `deepspeed`) sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Beside the
collectives there is a store, a small server that each process can write to and read by itself. In it each process
notes the update it is in, so that when a collective does not come back the others can tell which rank has not come; and
the first to fail notes that, so that one failure is told once. When it is told, a thread of every process sees that in
the store and ends the process, which may wait for one that has failed, or hang. And while rank 0 does what it does
alone, its thread counts there, so that the others, who wait, know that it lives.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import attrs
import torch
from torch import distributed as dist

from zoo.errors import ConfigError
from zoo.nn import across

ENVIRONMENT = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
"""What a launcher sets; these are for a process that was started without one. Port 0 is any that is free."""

GRACE_SECONDS = 3.0
"""How much later than the first a process may learn that a collective has failed."""

_LOOK_SECONDS = 0.5
"""Between two looks at whether another process has failed."""

_met: list[Group] = []


def processes() -> int:
    """Return how many processes the launcher has started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched() -> bool:
    """Return whether this process was started by a launcher of several processes, or by DeepSpeed's own."""
    return processes() > 1 or "CROSS_SIZE" in os.environ


@attrs.define(eq=False)
class Group:
    """The processes of torch's default group."""

    rank: int
    size: int
    store: Any
    minutes: float
    """How long a collective waits."""
    last: int | None = attrs.field(default=None, init=False)
    """The update this process is in; None before the first."""
    turns: int = attrs.field(default=0, init=False)
    """How often rank 0 has worked alone; every process counts them."""
    working: bool = attrs.field(default=False, init=False)
    """Whether this process is rank 0 and works alone."""

    def barrier(self) -> None:
        """Wait until every process is here."""
        dist.barrier()

    def share(self, value: Any) -> Any:
        """Return rank 0's value on every rank."""
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks, on every rank."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let rank 0 work in the block for as long as it takes; the others enter theirs when it has left its own.

        Raises:
            DistStoreError: on the others, rank 0 has not come, or nothing was heard of it, for `minutes`.
        """
        self.turns += 1
        if self.rank > 0:
            self._wait_for_first()
            yield
            return
        self.working = True
        try:
            yield
        finally:
            self.working = False
            if self.size > 1:
                self.store.add("turns", 1)

    def _wait_for_first(self) -> None:
        """Return when rank 0 has worked alone as often as this process has asked."""
        beats, heard, rest = 0, time.monotonic(), 0.01
        while self.store.add("turns", 0) < self.turns:
            now = self.store.add("beats", 0)
            if now != beats:
                beats, heard = now, time.monotonic()
            if time.monotonic() - heard > 60 * self.minutes:
                raise dist.DistStoreError(f"nothing was heard of rank 0 for {self.minutes:g} minutes")
            time.sleep(rest)
            rest = min(2 * rest, _LOOK_SECONDS)

    def at(self, step: int) -> None:
        """Note that this process begins update `step` (counted from 0)."""
        self.last = step
        if self.size > 1:
            self.store.set(f"at/{self.rank}", str(step))

    def claim(self) -> bool:
        """Return True to the first process that asks: the one that tells what went wrong."""
        return self.store.add("told", 1) == 1

    def was_there(self) -> None:
        """Note that a collective has failed here: this process was there, and another was not."""
        self.store.set(f"waited/{self.rank}", "1")

    def over(self, code: int) -> None:
        """Have every process end with this exit code, now that what went wrong is told.

        The first process, which may keep the store, returns when the others have seen it, or after a moment.
        """
        self.store.set("over", f"{self.rank} {code}")
        self.leave()

    def leave(self) -> None:
        """Note that this process ends; the first then gives the others a moment to see why."""
        self.store.set(f"left/{self.rank}", "1")
        all_of_them, until = [f"left/{rank}" for rank in range(self.size)], time.monotonic() + GRACE_SECONDS
        while self.rank == 0 and not self.store.check(all_of_them) and time.monotonic() < until:
            time.sleep(0.05)

    def watch(self) -> None:
        """End this process, with another's exit code, when that one has told what went wrong; count while it works."""
        try:
            while not self.store.check(["over"]):
                if self.working:
                    self.store.add("beats", 1)
                time.sleep(_LOOK_SECONDS)
            teller, code = map(int, self.store.get("over").split())
            if teller == self.rank:
                return
            self.leave()
        except (RuntimeError, OSError):  # the store has gone with the process that kept it: the run is at its end
            return
        os._exit(code)

    def missing(self) -> str:
        """Return which ranks took no part in the collective that failed, and where they were last, in words.

        It has failed, or will within a moment, on all that took part. Where one alone is left this returns at once: a
        launcher that has seen a process die ends the others within a second.
        """
        until, lost = time.monotonic() + GRACE_SECONDS, list(range(self.size))
        while len(lost) > 1 and time.monotonic() < until:
            time.sleep(0.1)
            lost = [rank for rank in lost if not self.store.check([f"waited/{rank}"])]
        return ", ".join(f"rank {rank}, last seen in {self.place(rank)}" for rank in lost)

    def place(self, rank: int | None = None) -> str:
        """Return where a rank (this one) is, in words."""
        if rank is None:
            return "its start" if self.last is None else f"update {self.last + 1}"
        key = f"at/{rank}"
        return f"update {int(self.store.get(key)) + 1}" if self.store.check([key]) else "its start"


def met() -> Group | None:
    """Return the processes of this run, once they have met."""
    return _met[0] if _met else None


def meet(minutes: float) -> Group:
    """Start torch's process group, if it is not, and return the processes.

    Sums and gathers of `zoo.nn.across` run over them. With GPUs each process takes the one its LOCAL_RANK names.

    Args:
        minutes: how long a collective may wait.

    Raises:
        ConfigError: the port is in use, or this machine has fewer GPUs than processes.
        ConnectionError: the first process was not found.
    """
    if _met:
        return _met[0]
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.is_available():
        if local >= torch.cuda.device_count():
            raise ConfigError(f"more processes were started than this machine has GPUs ({torch.cuda.device_count()})")
        torch.cuda.set_device(local)
    elif size > 1:
        _share_cores(size)
    timeout = timedelta(minutes=minutes)
    store, *_ = next(_rendezvous(rank, size, minutes))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    _met.append(Group(rank, size, dist.PrefixStore(_name(), store), minutes))
    if size > 1:
        threading.Thread(target=_met[0].watch, name="watch", daemon=True).start()
    across.set_group(None, active=size > 1)
    return _met[0]


def device() -> torch.device:
    """Return this process's device."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )


def _rendezvous(rank: int, size: int, minutes: float) -> Iterator[Any]:
    began = time.monotonic()
    try:
        yield from dist.rendezvous("env://", rank, size, timeout=timedelta(minutes=minutes))
    except (RuntimeError, OSError) as error:
        port = int(os.environ["MASTER_PORT"])
        if rank > 0:
            host, waited = os.environ["MASTER_ADDR"], time.monotonic() - began
            within = f" within {minutes:g} minutes" if waited >= 60 * minutes else ""
            why = _unknown(host, port) or str(error).partition("\n")[0]
            raise ConnectionError(f"rank {rank} did not find rank 0 at {host}:{port}{within}: {why}") from error
        if "EADDRINUSE" not in str(error) and "already in use" not in str(error):
            raise
        raise ConfigError(
            f"port {port} is in use by another program: choose one for the launcher, as in "
            f"`deepspeed --master_port {port + 1} scripts/train.py ...` (torchrun has the same option)"
        ) from error


def _unknown(host: str, port: int) -> str:
    """Return why a host's name means nothing here, or ""; what torch says is that it waited in vain."""
    try:
        socket.getaddrinfo(host, port)
    except OSError as error:
        return f"no such host ({error.strerror or error})"
    return ""


def _name() -> str:
    """Return a name that the processes of this run share, and no other run that came to the same port by mistake."""
    box = [secrets.token_hex(8)]
    dist.broadcast_object_list(box, src=0)
    return f"zoo-{box[0]}"


def _share_cores(size: int) -> None:
    """Give each process of this machine its share of the cores, unless the environment says how many."""
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("LOCAL_SIZE", size)))
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))

"""How processes wait for rank 0 and tell of each other: threads around a store in memory, and no collectives."""

import socket
import threading
import time
from datetime import timedelta

import pytest
from torch import distributed as dist

from zoo.errors import BadData
from zoo.train import faults, group
from zoo.train.faults import _is_collective
from zoo.train.group import Group
from zoo.train.loop import Diverged

SECOND = 1 / 60


@pytest.fixture
def pair(monkeypatch):
    """Two processes that wait a second for each other."""
    monkeypatch.setattr(group, "_LOOK_SECONDS", 0.05)
    store = dist.HashStore()
    store.set_timeout(timedelta(seconds=5))
    yield [Group(rank, 2, store, SECOND) for rank in (0, 1)]
    store.set("over", "0 1")  # the thread that watches ends


def watching(one):
    thread = threading.Thread(target=one.watch, daemon=True)
    thread.start()
    return thread


def test_what_rank_0_does_alone_may_take_longer_than_a_collective(pair):
    zero, one = pair
    watching(zero)
    done = []

    def work():
        for turn in (1, 2):
            with zero.alone():
                time.sleep(2.5 if turn == 1 else 0)
                done.append(turn)

    worker = threading.Thread(target=work)
    worker.start()
    with one.alone():
        assert 1 in done
    with one.alone():
        assert done == [1, 2]
    worker.join()


def test_a_rank_0_that_does_not_come_is_waited_for_no_longer_than_a_collective(pair):
    watching(pair[0])  # it lives, and works elsewhere
    began = time.monotonic()
    with (
        pytest.raises(dist.DistStoreError, match=r"nothing was heard of rank 0 for 0\.0166667 minutes") as caught,
        pair[1].alone(),
    ):
        pass
    assert 1 <= time.monotonic() - began < 3
    assert _is_collective(caught.value)


def test_a_rank_0_that_dies_at_work_is_waited_for_no_longer_than_a_collective(pair):
    zero, one = pair
    zero.working = True
    zero.store.add("beats", 3)
    with pytest.raises(dist.DistStoreError), one.alone():
        pass


def test_rank_0_counts_its_turn_also_when_it_fails(pair):
    zero, one = pair
    with pytest.raises(OSError, match="full"), zero.alone():
        raise OSError("the disk is full")
    with one.alone():
        assert not zero.working


def test_one_process_waits_for_nobody():
    with Group(0, 1, None, SECOND).alone():
        pass


@pytest.mark.parametrize("error", [BadData("no pictures in /data"), Diverged("the last 10 updates")])
def test_what_one_process_alone_finds_is_told_with_its_rank_and_host(pair, monkeypatch, capsys, error):
    monkeypatch.setattr(faults, "GRACE_SECONDS", 0.1)
    code = faults._tell(pair[1], error)
    assert code == (2 if isinstance(error, BadData) else 1)
    assert capsys.readouterr().err == f"train.py: rank 1 ({socket.gethostname()}): {error}\n"


def test_what_all_find_alike_is_told_by_rank_0(pair, monkeypatch, capsys):
    monkeypatch.setattr(faults, "GRACE_SECONDS", 0.5)
    monkeypatch.setattr(group, "GRACE_SECONDS", 0.1)
    zero, one = pair
    other = threading.Thread(target=faults._tell, args=(one, BadData("no pictures")))  # comes first, and leaves it to 0
    other.start()
    time.sleep(0.1)
    faults._tell(zero, BadData("no pictures"))
    other.join()
    assert capsys.readouterr().err == "train.py: no pictures\n"


@pytest.mark.parametrize(
    "said",
    [
        "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 4000ms for recv "
        "operation to complete",
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:42152.",
        "Application timeout caused pair closure",
        "NCCL error in: ProcessGroupNCCL.cpp:1970, remote process exited or there was a network error",
    ],
)
def test_what_a_failed_collective_says(said):
    assert _is_collective(RuntimeError(said))


@pytest.mark.parametrize("said", ["reading the shard timed out", "connection reset by the data server", "broken pipe"])
def test_a_parts_own_error_is_no_failed_collective(said):
    assert not _is_collective(RuntimeError(said))


def lost(monkeypatch, seconds, text, host="127.0.0.1"):
    """Return what rank 1 says when torch's rendezvous fails after `seconds` with this text."""

    def fails(*args, **kwargs):
        time.sleep(seconds)
        raise dist.DistNetworkError(text)

    monkeypatch.setattr(dist, "rendezvous", fails)
    monkeypatch.setenv("MASTER_ADDR", host)
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(ConnectionError) as caught:
        next(group._rendezvous(1, 2, 0.2 / 60))
    return str(caught.value)


def test_why_rank_0_was_not_found_is_told(monkeypatch):
    at_once = lost(monkeypatch, 0, "Connection refused\nframe #0: c10::Error")
    assert at_once == "rank 1 did not find rank 0 at 127.0.0.1:29500: Connection refused"
    late = lost(monkeypatch, 0.3, "The client socket has timed out")
    assert late.endswith("127.0.0.1:29500 within 0.00333333 minutes: The client socket has timed out")

    def unknown(*args):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    said = lost(monkeypatch, 0, "The client socket has timed out", host="nowhere")
    assert said == "rank 1 did not find rank 0 at nowhere:29500: no such host (Name or service not known)"

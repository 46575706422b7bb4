"""The allocator's setting is taken where glibc is the C library, and harms nothing elsewhere."""

import platform
import sys

import pytest

from zoo.train.allocator import keep_freed_memory


@pytest.mark.parametrize("sharded", [True, False])
def test_glibc_takes_it(sharded):
    glibc = sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"
    assert keep_freed_memory(sharded=sharded) == glibc


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False

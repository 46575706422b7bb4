"""The allocator's setting is taken where glibc is the C library, and harms nothing elsewhere."""

import platform
import sys

from zoo.train.allocator import keep_freed_memory


def test_glibc_takes_it():
    assert keep_freed_memory() == (sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc")


def test_another_system_is_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False

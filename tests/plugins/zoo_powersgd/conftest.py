"""Makes the fakes importable, and keeps torch to one thread: ranks are threads here."""

import sys
from pathlib import Path

import pytest

from zoo.testing.kit import one_thread

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield

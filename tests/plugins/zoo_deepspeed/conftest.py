"""Makes the helpers importable."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "zoo" / "train")]

pytest.importorskip("deepspeed.git_version_info", reason="needs the extra: pip install -e '.[deepspeed]'")

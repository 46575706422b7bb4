"""Makes the helper importable, and hides a torchvision that does not belong to the installed torch.

It would stop transformers from importing models: its own package asks for torchvision and gets the build for CUDA,
which raises on import beside a CPU build of torch. Nothing here needs it, and transformers does without when it is
absent.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision"] = None  # type: ignore[assignment]

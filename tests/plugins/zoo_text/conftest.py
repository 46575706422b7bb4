"""Hides a torchvision that does not belong to the installed torch: it would stop transformers from importing models.

Its own package asks for it and gets the build for CUDA; beside a CPU build of torch it raises on import. Nothing here
needs it, and transformers does without when it is absent.
"""

import sys

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision"] = None  # type: ignore[assignment]

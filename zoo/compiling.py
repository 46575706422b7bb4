"""What torch.compile needs on this machine. Imports no torch."""

import os
import shutil

from zoo.errors import NotInstalled


def check_compiler(device: str) -> None:
    """Refuse to compile for a device of type "cpu" where there is no C++ compiler.

    Raises:
        NotInstalled: it is missing.
    """
    compiler = (os.environ.get("CXX") or "g++").split()[0]
    if device == "cpu" and shutil.which(compiler) is None:
        raise NotInstalled(f"compiling needs a C++ compiler, and there is no '{compiler}': install it, or set CXX")

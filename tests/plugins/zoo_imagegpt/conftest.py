"""Small transformers with weights in which nothing is zero, so that what agrees does so for a reason.

Also hides a torchvision that does not belong to the installed torch: it would stop transformers from importing models.
"""

import sys

import attrs
import pytest
import torch

from zoo.testing.kit import one_thread
from zoo_imagegpt.model import ImageGptPrior
from zoo_imagegpt.variants import imagegpt_prior_tiny

try:
    import torchvision  # noqa: F401
except (ImportError, RuntimeError):
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision"] = None  # type: ignore[assignment]


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture
def build():
    """Return a factory: config fields to a model of random weights, 0.3 wide."""

    def factory(dtype=torch.float32, seed=0, **fields):
        model = ImageGptPrior(attrs.evolve(imagegpt_prior_tiny(), **{"grids": ((4, 4),), "depth": 3} | fields))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        return model.to(dtype).eval()

    return factory


@pytest.fixture
def codes():
    """Return a factory: model and rows to random codes."""

    def factory(model, rows=3, seed=0):
        return torch.randint(model.vocab_size, (rows, model.length), generator=torch.Generator().manual_seed(seed))

    return factory

"""Small transformers with weights in which nothing is zero, so that what agrees does so for a reason."""

import attrs
import pytest
import torch

from zoo.interfaces import Cond
from zoo.testing.kit import one_thread
from zoo_dalle.configs import dalle_prior_tiny
from zoo_dalle.model import DallePrior


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture
def build():
    """Return a factory: config fields (and `kinds` of the layers) to a model of random weights."""

    def factory(kinds=None, dtype=torch.float32, seed=0, **fields):
        fields = {"text_length": 6, "text_vocab": 20, "classes": 5, "depth": 5, **fields}
        model = DallePrior(attrs.evolve(dalle_prior_tiny(), **fields))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
        if kinds is not None:
            model.kinds = kinds
        return model.to(dtype).eval()

    return factory


@pytest.fixture
def inputs():
    """Return a factory: model and rows to codes and the condition it reads; captions differ in length."""

    def factory(model, rows=3, seed=0):
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(model.vocab_size, (rows, model.length), generator=generator)
        if model.config.reads == "label":
            return codes, Cond(label=torch.randint(model.config.classes, (rows,), generator=generator))
        if model.config.reads == "nothing":
            return codes, Cond()
        length = model.config.text_length
        ids = torch.randint(model.config.text_vocab, (rows, length), generator=generator)
        lengths = torch.arange(rows)[:, None] % (length - 1) + 1
        return codes, Cond(ids=ids, mask=torch.arange(length) < lengths)

    return factory

"""Makes the helpers importable, keeps torch to one thread (more would only add noise), and has runs to start from."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from short_runs import go

from zoo.testing.kit import one_thread
from zoo.train import finetuning


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture
def few_measures(monkeypatch):
    """Measures before and after fine-tuning take a moment."""
    monkeypatch.setattr(finetuning, "CAPTIONS", 4)
    monkeypatch.setattr(finetuning, "PICTURES", 32)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A whole system, trained for a moment; with an average of the weights."""
    folder = tmp_path_factory.mktemp("runs") / "base"
    with one_thread():
        go(folder, set=("prior.train.ema=0.5",))
    return folder


@pytest.fixture(scope="session")
def whole(base, tmp_path_factory):
    """A prior trained from there without a stop."""
    with one_thread():
        return Path(go(tmp_path_factory.mktemp("whole") / "run", part="prior", init=str(base)).path)


@pytest.fixture(scope="session")
def cascade(tmp_path_factory):
    """A cascade whose text encoder was trained with the base; the stage above has read it frozen, from a store."""
    folder = tmp_path_factory.mktemp("cascade") / "run"
    with one_thread():
        go(folder, model="imagen-tiny", steps=12)
    return folder

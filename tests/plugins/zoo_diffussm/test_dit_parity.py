"""DiT: the same numbers as the authors' code.

`data/dit.safetensors` holds what github.com/facebookresearch/DiT at ed81ce2, `models.py`, said, with timm's layers: DiT
with input_size 8, patch_size 2, in_channels 4, hidden_size 48, depth 2, num_heads 4, num_classes 10, evaluating; every
parameter but the positions the weights of `rule` at a scale of 0.15; in double precision (`Tensor.float` made to do
nothing); on `rule` of "x" [2,4,8,8] at scale 1, the steps 17 and 803, the labels 3 and 10 (null): "output"; and of the
sum of output * `rule` of "probe", each parameter's gradient, by name in sorted order: the norm ("norms") and the sum of
its product with `rule` of "probe " + name ("probes"); "positions", their fixed table. NumPy promises `RandomState`
never to change.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from attrs import evolve
from safetensors import safe_open
from safetensors.torch import load_file

from zoo.errors import BadWeights, ConfigError
from zoo.interfaces import Cond
from zoo_diffussm import model, variants
from zoo_diffussm.configs import DiT
from zoo_diffussm.interop import from_dit, to_dit

PATH = Path(__file__).parent / "data" / "dit.safetensors"
CONFIG = DiT(width=48, depth=2, heads=4, channels=4, size=(8, 8), bounded=False, classes=10)


def rule(name, shape, scale):
    """Return the tensor of a name: normal numbers, double precision."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(drawn * scale))


@pytest.fixture
def said():
    return load_file(PATH)


@pytest.fixture
def state(said):
    with safe_open(PATH, framework="pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
    return {n: rule(n, shape, 0.15) for n, shape in shapes.items()} | {"pos_embed": said["positions"]}


def test_outputs_and_gradients(said, state):
    net = model.dit(CONFIG).double()
    net.load_state_dict(from_dit(state, CONFIG))
    steps = torch.tensor([17.0, 803.0], dtype=torch.float64) / 1000
    x, logsnr = rule("x", [2, 4, 8, 8], 1.0), CONFIG.schedule.logsnr(steps)
    cond = Cond(label=torch.tensor([3, 3]), drop=torch.tensor([False, True]))
    heard = []
    net.head.register_forward_hook(lambda module, arguments, result: heard.append(result))
    found = net.predict(x, logsnr, cond)
    y = heard[0]  # all eight channels; theirs does not clamp the variance
    assert torch.equal(found.mean, y[:, :4])
    assert torch.equal(found.variance, y[:, 4:].clamp(-1, 1))
    assert float((y - said["output"]).detach().abs().max()) <= 1e-12 * float(said["output"].abs().max())
    (y * rule("probe", list(y.shape), 1.0)).sum().backward()
    own = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in net.named_parameters()}
    grads = to_dit(own, CONFIG)
    assert grads.keys() == state.keys()
    names = sorted(grads.keys() - {"pos_embed"})
    assert torch.allclose(torch.stack([grads[n].norm() for n in names]), said["norms"], rtol=1e-10)
    probes = torch.stack([(grads[n] * rule(f"probe {n}", list(grads[n].shape), 1.0)).sum() for n in names])
    assert float((probes - said["probes"]).abs().div(said["norms"]).max()) < 1e-10


def test_positions_are_theirs(said):
    assert torch.allclose(model.dit(CONFIG).input.positions, said["positions"][0].float(), atol=1e-6)


def test_there_and_back(state):
    again = to_dit(from_dit(state, CONFIG), CONFIG)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[n], state[n]) for n in state)


def test_size_is_the_published_one():
    cost = variants.dit_xl_2_256().cost()
    assert cost.params == 675_129_632
    assert next(w.numel for w in cost.weights if w.name == "input.positions") == 294_912


def test_a_fresh_one_predicts_zero():
    net = model.dit(evolve(CONFIG, variance="fixed"))
    assert not net.predict(torch.randn(1, 4, 8, 8), torch.zeros(1), Cond(label=torch.tensor([1]))).mean.any()


def test_bad_weights_are_named(state):
    with pytest.raises(BadWeights, match=r"lack 'blocks.1.mlp.fc2.bias'"):
        from_dit({n: x for n, x in state.items() if n != "blocks.1.mlp.fc2.bias"}, CONFIG)
    with pytest.raises(BadWeights, match="unexpected 'extra'"):
        from_dit(state | {"extra": torch.zeros(1)}, CONFIG)
    with pytest.raises(ConfigError, match="read labels"):
        from_dit(state, evolve(CONFIG, reads="nothing"))

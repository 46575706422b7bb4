"""What DeepFloyd's code said of two small denoisers.

`data/base.safetensors` and `data/enlarging.safetensors` hold outputs of github.com/deep-floyd/IF at ffc8163,
`deepfloyd_if/model/unet.py` (run with empty parent packages), written once by a script that

- builds UNetModel with model_channels 64, out_channels 6, num_res_blocks 1, attention_resolutions "8", activation
  "gelu", encoder_dim 48, att_pool_heads 4, image_size 16, channel_mult "1,2", num_head_channels 16,
  use_scale_shift_norm, resblock_updown, precision "32"; for "base" encoder_channels 64 and in_channels 3, for
  "enlarging" SuperResUNetModel with encoder_channels 96, in_channels 6, efficient_activation and
  scale_skip_connection, its low-resolution diffusion returning the picture as it is and aug_level 0.25;
- gives every parameter the weights of `rule` at a scale of 0.15, and 1 more to a norm's gain; casts it to double
  precision, where `Tensor.float`, which its softmax calls, does nothing;
- runs it on `rule` of "x" [2,3,16,16], "text" [2,7,48] and "low" [2,3,8,8] at scale 1 and the steps 17 and 803:
  "output"; and of the sum of output * `rule` of "probe", each parameter's gradient, by name in sorted order: the norm
  ("norms") and the sum of its product with `rule` of "probe " + name ("probes").

The file's metadata lists names and shapes of its state dict, and which are gains. NumPy promises `RandomState` never to
change.
"""

import json
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attrs import evolve
from safetensors import safe_open
from safetensors.torch import load_file

from zoo.diffusion.config import Schedule
from zoo.testing.kit import one_thread
from zoo_imagen.configs import UNet

sys.path.insert(0, str(Path(__file__).parent))  # imagen_small, for the test modules

DATA = Path(__file__).parent / "data"
BASE = UNet(
    width=64, mults=(1, 2), blocks=1, attention=(2,), head_width=16, activation="gelu", text_channels=64,
    text_norm="group", pool_heads=4, variance="learned", schedule=Schedule(kind="cosine-1000"), channels=3,
    size=(16, 16), bounded=True, text_width=48, text_length=7,
)  # fmt: skip


def rule(name: str, shape: list[int], scale: float) -> torch.Tensor:
    """Return the tensor of a name: normal numbers, double precision."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(drawn * scale))


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(params=["base", "enlarging"])
def public(request):
    """Return one of the two: `config`, `state` (their state dict), `said` (what their code computed), `rule`."""
    path = DATA / f"{request.param}.safetensors"
    with safe_open(path, framework="pt") as file:
        shapes, gains = (json.loads(file.metadata()[name]) for name in ("tensors", "gains"))
    state = {name: rule(name, shape, 0.15) + (name in gains) for name, shape in shapes.items()}
    config = BASE if request.param == "base" else evolve(BASE, text_channels=96, sum_scale=0.7071, low=8)
    return SimpleNamespace(config=config, state=state, said=load_file(path), rule=rule)

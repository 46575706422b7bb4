"""Small VQGANs and KL autoencoders, and what public code said of them.

`data/nearest.safetensors` and `data/gumbel.safetensors` hold inputs and outputs of the authors' package, PyPI
`taming-transformers-rom1504` 0.0.6 (its VQModel and GumbelVQ run with stand-ins for `pytorch_lightning` and
`taming.main`), written once by a script that, for each of the two classes,

- builds it with ch 32, ch_mult 1 2 2, num_res_blocks 2, attn_resolutions 16 and 8 at resolution 32, z_channels 24,
  n_embed 40, embed_dim 20 (24 for Gumbel, whose code needs it equal), and gives it the weights of `rule`, and 1 more
  to a norm's gain;
- in single precision encodes two pictures of 32 x 24 (`encoder`, `quant_conv`: "vectors"), takes the nearest or the
  likeliest codes ("codes", and in "margin" how far the second choice is at least) and decodes them
  ("reconstruction");
- in double precision and training mode runs `forward`: its output ("double_out"), its second result
  ("quantiser_loss"), "loss" = mean |x - output| + that, and of each parameter's gradient, by name in sorted order,
  the norm ("norms") and the sum of its product with `rule` of "probe " + name and scale 1 ("probes"). For Gumbel the
  temperature is 0.7, kl_weight 0.01, and "gumbel" [B,h,w,K] the noise that torch drew.

`data/kl-ldm.safetensors` and `data/kl-diffusers.safetensors` hold those of two KL autoencoders: AutoencoderKL of
github.com/CompVis/latent-diffusion at a506df5 with its LPIPSWithDiscriminator (stand-ins for `pytorch_lightning` and
`taming`, a perceptual loss of 0, kl_weight 0.01, disc_factor 0), ch 32, ch_mult 1 2 2, num_res_blocks 2,
attn_resolutions 16 at resolution 32, z_channels 3, embed_dim 5; and AutoencoderKL of diffusers 0.42.1,
block_out_channels 16 32 64, layers_per_block 1, latent_channels 4, norm_num_groups 8. With weights made likewise, in
double precision and training mode, of 2 x "images" - 1: the posterior's "mean" and "logvar", the picture "decoded" of
mean + deviation times `rule` of "noise", the "loss" (the authors' code's; for diffusers, which has none, the mean over
pictures of the sum of |x - decoded| and 0.01 times their `kl()`), and "norms" and "probes" of its gradients as above.

The file's metadata lists names and shapes of its state dict. NumPy promises `RandomState` never to change.
"""

import json
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from zoo.testing.kit import one_thread
from zoo_vqgan import kl_interop
from zoo_vqgan.configs import Gumbel, Nearest, Net, Vqgan
from zoo_vqgan.kl_configs import Kl

DATA = Path(__file__).parent / "data"
NET = Net(channels=32, multipliers=(1, 2, 2), blocks=2, attention=(2, 4), z_channels=24)
CONFIGS = {
    "nearest": Vqgan(net=NET, vocab_size=40, width=20, nearest=Nearest(), image_size=32),
    "gumbel": Vqgan(
        net=NET, vocab_size=40, width=24, quantiser="gumbel", image_size=32,
        gumbel=Gumbel(kl_weight=1e-2, temperature_end=0.7, temperature_updates=0),
    ),
}  # fmt: skip

KL = {
    "ldm": Kl(
        net=Net(channels=32, multipliers=(1, 2, 2), blocks=2, attention=(2,), z_channels=3),
        channels=5, kl_weight=0.01, image_size=32,
    ),
    "diffusers": Kl(
        net=Net(channels=16, multipliers=(1, 2, 4), blocks=1, attention=(), groups=8, z_channels=4),
        channels=4, kl_weight=0.01, image_size=32,
    ),
}  # fmt: skip


def rule(name: str, shape: list[int], scale: float) -> torch.Tensor:
    """Return the tensor of a name: normal numbers, double precision."""
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    return torch.from_numpy(np.asarray(drawn * scale))


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(params=["nearest", "gumbel"])
def public(request):
    """Return one of the two: `config`, `state` (their state dict), `said` (what their code computed), `rule`."""
    state, said = _answers(request.param)
    return SimpleNamespace(config=CONFIGS[request.param], state=state, said=said, rule=rule)


@pytest.fixture(params=["ldm", "diffusers"])
def kl_public(request):
    """Return one of the two KL autoencoders, likewise; `read` and `write` go from and to its layout."""
    state, said = _answers(f"kl-{request.param}")
    read, write = (getattr(kl_interop, f"{way}_{request.param}") for way in ("from", "to"))
    return SimpleNamespace(config=KL[request.param], state=state, said=said, rule=rule, read=read, write=write)


def _answers(name):
    path = DATA / f"{name}.safetensors"
    with safe_open(path, framework="pt") as file:
        shapes = json.loads(file.metadata()["tensors"])
    one = {name: 1.0 * ("norm" in name and name.endswith("weight")) for name in shapes}
    scale = {name: 0.03 if name == "decoder.conv_out.weight" else 0.15 for name in shapes}  # pixels of usual size
    state = {name: (rule(name, shape, scale[name]) + one[name]).float() for name, shape in shapes.items()}
    return state, load_file(path)

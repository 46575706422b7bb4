"""The KL autoencoder's weights in its three public layouts, and back.

"ldm" is that of the authors' training runs [1], the same as VQGAN's; "stable-diffusion" is that inside a checkpoint of
a whole system [2], whose other networks are dropped; "diffusers" is [3]'s, a file or a folder with its settings.

A file of weights alone holds no scale of the latent. A measured one is written into [3]'s settings; to read such
weights again, set it: `--set scale=...`.

[1] github.com/CompVis/latent-diffusion
[2] github.com/CompVis/stable-diffusion
[3] github.com/huggingface/diffusers, `AutoencoderKL`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from attrs import evolve
from torch import Tensor

from zoo.errors import BadWeights, ConfigError
from zoo_vqgan.interop import DROPPED, Entry, State, check_groups, check_names, network
from zoo_vqgan.kl_configs import Kl

MODEL = "KL autoencoder"
"""What messages call it."""
FIRST_STAGE = "first_stage_model."
"""What [2] puts in front of every name of [1]."""
BUFFERS = ("mean_square", "updates")
"""What ours has beside its weights where the scale is measured."""


def from_ldm(state: State, config: Kl) -> dict[str, Tensor]:
    """Return our state dict for the authors' one; the networks of the losses are dropped.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the config has what their code has not, or no scale.
    """
    return _read({name: x for name, x in state.items() if not name.startswith(DROPPED)}, _ldm(config), config)


def to_ldm(state: State, config: Kl) -> dict[str, Tensor]:
    """Return the authors' state dict for ours.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the config has what their code has not.
    """
    return _write(state, _ldm(config), config)


def from_stable_diffusion(state: State, config: Kl) -> dict[str, Tensor]:
    """Return our state dict for the first stage of a whole system; raises as `from_ldm` does."""
    first = {name.removeprefix(FIRST_STAGE): x for name, x in state.items() if name.startswith(FIRST_STAGE)}
    if not first:
        raise BadWeights(
            f"this file holds no {MODEL}: none of its {len(state)} names begins with {FIRST_STAGE!r}; a file of an "
            "autoencoder alone has layout ldm"
        )
    return from_ldm(first, config)


def to_stable_diffusion(state: State, config: Kl) -> dict[str, Tensor]:
    """Return the first stage of a whole system for our state dict; raises as `to_ldm` does."""
    return {FIRST_STAGE + name: x for name, x in to_ldm(state, config).items()}


def from_diffusers(state: State, config: Kl) -> dict[str, Tensor]:
    """Return our state dict for diffusers'; the attention's older names are read too.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the config has what their class has not, or no scale.
    """
    return _read({_renamed(name, OLDER): x for name, x in state.items()}, _diffusers(config), config)


def to_diffusers(state: State, config: Kl) -> dict[str, Tensor]:
    """Return diffusers' state dict for ours.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the config has what their class has not.
    """
    return _write(state, _diffusers(config), config)


def to_folder(state: State, config: Kl, size: int | None) -> dict[str, Any]:
    """Return the files of a folder that `AutoencoderKL.from_pretrained` loads; raises as `to_diffusers` does."""
    levels = len(config.net.widths)
    described = {
        "_class_name": "AutoencoderKL",
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": list(config.net.widths),
        "layers_per_block": config.net.blocks,
        "latent_channels": config.channels,
        "sample_size": size or config.image_size or 32,
        **_said(config),
        "scaling_factor": float(state["mean_square"].rsqrt()) if config.scale is None else config.scale,
    }
    return {"config.json": described, "diffusion_pytorch_model.safetensors": to_diffusers(state, config)}


USUAL: dict[str, Any] = {
    "norm_num_groups": 32, "act_fn": "silu", "scaling_factor": 0.18215, "shift_factor": None, "latents_mean": None,
    "latents_std": None, "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True,
}  # fmt: skip
"""What decides the computation and is in no shape, or would be missed as a key, in the words of [3]; and what [3] takes
where a description says nothing."""
FIELDS = {"norm_num_groups": "net.groups", "scaling_factor": "scale"}
"""Their name of a setting -> ours, of those that we can have otherwise."""


def check_description(described: Mapping[str, Any], config: Kl) -> None:
    """Refuse weights that their `config.json` says are of another computation; no shape shows it.

    Raises:
        BadWeights: names the field, theirs and ours.
    """
    for name, ours in _said(config).items():
        theirs = described.get(name, USUAL[name])
        if theirs != ours:
            hint = f"; --set {FIELDS[name]}={theirs} (in a system latent.{FIELDS[name]})" if name in FIELDS else ""
            raise BadWeights(f"says {name} = {theirs}, and this model has {ours}{hint}")


def _said(config: Kl) -> dict[str, Any]:
    return USUAL | {"norm_num_groups": config.net.groups, "scaling_factor": config.scale}


def _read(state: State, entries: list[Entry], config: Kl) -> dict[str, Tensor]:
    check_names(state, [name for entry in entries for name in entry.theirs], MODEL)
    if config.scale is None:
        raise ConfigError(
            "scale: is measured in training, and public weights do not hold it; give theirs, scaling_factor in a "
            "config.json: --set scale=0.18215"
        )
    return {entry.ours: entry.read(state) for entry in entries}


def _write(state: State, entries: list[Entry], config: Kl) -> dict[str, Tensor]:
    check_names(state, [entry.ours for entry in entries] + list(BUFFERS if config.scale is None else ()), MODEL)
    return {name: x for entry in entries for name, x in entry.write(state[entry.ours]).items()}


def _ldm(config: Kl) -> list[Entry]:
    check_groups(config.net)
    return list(network(config.net))


def _diffusers(config: Kl) -> list[Entry]:
    """Return the same tensors by the other names; attention is of matrices, as ours is."""
    net = config.net
    if net.attention:
        raise ConfigError(f"net.attention: is {net.attention}; diffusers' layout has attention in the middle alone")
    if net.z_channels != config.channels:
        raise ConfigError(f"channels: is {config.channels}; in diffusers' layout it equals net.z_channels")
    last = len(net.widths) - 1
    return [
        evolve(entry, theirs=tuple(_diffusers_name(name, last) for name in entry.theirs), matrix=False)
        for entry in network(net)
    ]


NAMES = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.norm_out\.", ".conv_norm_out."),
)
"""From names of [1] to those of [3], levels of the decoder aside."""
OLDER = (
    (r"(\.attentions\.0)\.query\.", r"\1.to_q."),
    (r"(\.attentions\.0)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.0)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.0)\.proj_attn\.", r"\1.to_out.0."),
)
"""What [3] called the attention's layers at first, as the files that were published then still do."""


def _diffusers_name(name: str, last: int) -> str:
    """Return [3]'s name of a tensor of [1]; the decoder's levels are numbered from the first to run."""
    name = re.sub(r"^decoder\.up\.(\d+)", lambda found: f"decoder.up.{last - int(found[1])}", name)
    return _renamed(name, NAMES)


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        name = re.sub(old, new, name)
    return name

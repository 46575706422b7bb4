"""DiT's weights in the authors' layout, and back.

Letters: D width, C channels, P patch, O output channels of a position.

[1] github.com/facebookresearch/DiT, models.py
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from zoo.errors import ConfigError
from zoo.keys import nothing_left, take
from zoo_diffussm.configs import DiT

State = Mapping[str, Tensor]

_take = partial(take, "the denoiser's weights")
_nothing_left = partial(nothing_left, "the denoiser's weights")

OUTSIDE = {
    "time.first": "t_embedder.mlp.0",
    "time.second": "t_embedder.mlp.2",
    "head.modulation": "final_layer.adaLN_modulation.1",
    "head.project": "final_layer.linear",
}
"""Layers outside of the blocks, ours -> theirs."""
BLOCK = (
    {"qkv": "attn.qkv", "out": "attn.proj"},
    {"up": "mlp.fc1", "down": "mlp.fc2"},
)
"""Layers of a block's two branches, ours -> theirs."""


def from_dit(state: State, config: DiT) -> dict[str, Tensor]:
    """Return our state dict for that of [1].

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the denoiser has what [1] has not, or lacks what it has.
    """
    _as_theirs(config)
    left = dict(state)
    ours = {a: _take(left, b, state) for a, b in _tensors(config)}
    ours["input.project.weight"] = _take(left, "x_embedder.proj.weight", state).flatten(1)
    ours["input.positions"] = _take(left, "pos_embed", state)[0]
    for i in range(config.depth):
        for name in ("weight", "bias"):
            both = _take(left, f"blocks.{i}.adaLN_modulation.1.{name}", state).chunk(2)
            for k, x in enumerate(both):
                ours[f"stack.blocks.{2 * i + k}.branch.modulation.{name}"] = x
    _nothing_left(left, ours)
    return ours


def to_dit(state: State, config: DiT) -> dict[str, Tensor]:
    """Return the state dict of [1] for ours.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the denoiser has what [1] has not, or lacks what it has.
    """
    _as_theirs(config)
    left = dict(state)
    theirs = {b: _take(left, a, state) for a, b in _tensors(config)}
    kernel = _take(left, "input.project.weight", state).unflatten(1, (-1, config.patch, config.patch))
    theirs["x_embedder.proj.weight"] = kernel
    theirs["pos_embed"] = _take(left, "input.positions", state)[None]
    for i in range(config.depth):
        for name in ("weight", "bias"):
            both = [_take(left, f"stack.blocks.{2 * i + k}.branch.modulation.{name}", state) for k in (0, 1)]
            theirs[f"blocks.{i}.adaLN_modulation.1.{name}"] = torch.cat(both)
    _nothing_left(left, theirs)
    return theirs


def _tensors(config: DiT) -> Iterator[tuple[str, str]]:
    """Yield our name and theirs of every tensor that is the same in both."""
    pairs = {**OUTSIDE}
    for i in range(config.depth):
        for k, layers in enumerate(BLOCK):
            pairs |= {f"stack.blocks.{2 * i + k}.branch.{a}": f"blocks.{i}.{b}" for a, b in layers.items()}
    for a, b in pairs.items():
        for name in ("weight", "bias"):
            yield f"{a}.{name}", f"{b}.{name}"
    yield "input.project.bias", "x_embedder.proj.bias"
    yield "label.weight", "y_embedder.embedding_table.weight"


def _as_theirs(config: DiT) -> None:
    if config.reads != "label" or config.positions != "sincos" or config.prefix or config.low:
        raise ConfigError(
            "DiT's own weights read labels and have fixed positions, and nothing in front of or beside the picture; "
            "set reads=label positions=sincos prefix=false, outside of a cascade's upper stages"
        )

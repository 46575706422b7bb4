"""The base U-Net's weights in DeepFloyd IF's layout, and back.

Letters: C width of a level, H heads, E head width, T width of the text that attention reads.

[1] github.com/deep-floyd/IF, deepfloyd_if/model/unet.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import attrs
import torch
from torch import Tensor

from zoo.errors import ConfigError
from zoo.keys import nothing_left, take
from zoo_imagen.configs import UNet

State = Mapping[str, Tensor]

_take = partial(take, "the denoiser's weights")
_nothing_left = partial(nothing_left, "the denoiser's weights")

OUTSIDE = {
    "time.first": "time_embed.0",
    "time.second": "time_embed.2",
    "pool.norm": "encoder_pooling.0",
    "pool.query": "encoder_pooling.1.q_proj",
    "pool.project": "encoder_pooling.2",
    "pool.after": "encoder_pooling.3",
    "net.input": "input_blocks.0.0",
    "net.norm": "out.0",
    "net.out": "out.2",
}
"""Layers outside of the blocks, ours -> theirs."""
BLOCK = {
    "branch.norm": "in_layers.0",
    "branch.conv": "in_layers.2",
    "branch.modulation": "emb_layers.1",
    "branch.modulated": "out_layers.0",
    "branch.out": "out_layers.3",
}
"""Layers of a residual block, ours -> theirs."""
CONVOLUTIONS = ("net.input", "net.out", "branch.conv", "branch.out")
"""Which of them are convolutions."""


@attrs.frozen
class Form:
    """How a tensor lies there and here: two functions of it and of E."""

    read: Callable[[Tensor, int], Tensor]
    """Theirs to ours."""
    write: Callable[[Tensor, int], Tensor]


def _split_heads(x: Tensor, width: int) -> Tensor:
    """Return all keys and then all values, of one head's after another."""
    return x.unflatten(0, (-1, 2, width)).transpose(0, 1).flatten(0, 2)


def _join_heads(x: Tensor, width: int) -> Tensor:
    """Return one head's keys and values after another, of all keys and then all values."""
    return x.unflatten(0, (2, -1, width)).transpose(0, 1).flatten(0, 2)


SAME = Form(lambda x, _: x, lambda x, _: x)
KERNEL = Form(lambda x, _: x.permute(0, 2, 3, 1), lambda x, _: x.permute(0, 3, 1, 2))
"""A convolution's kernel: [out,in,k,k] there, [out,k,k,in] here."""
POINT = Form(lambda x, _: x.flatten(1), lambda x, _: x[..., None])
"""A matrix that is a kernel of one place of a sequence there."""
PIXEL = Form(lambda x, _: x.flatten(1), lambda x, _: x[..., None, None])
"""A matrix that is a kernel of one place of a picture there."""
KEYS = Form(lambda x, e: _split_heads(x.flatten(1), e), lambda x, e: _join_heads(x, e)[..., None])
KEY_BIAS = Form(_split_heads, _join_heads)

Tensors = Iterator[tuple[str, str, Form]]
"""Our name, theirs, and the form, of one tensor after another."""


def from_deepfloyd(state: State, config: UNet) -> dict[str, Tensor]:
    """Return our state dict for that of [1].

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the denoiser reads no text, which [1] always does.
    """
    _reads_text(config)
    left = dict(state)
    ours = {a: form.read(_take(left, b, state), config.head_width) for a, b, form in _tensors(config)}
    ours["pool.position"] = _take(left, "encoder_pooling.1.positional_embedding", state)
    for name in ("weight", "bias"):
        ours[f"pool.keys.{name}"] = torch.cat([_take(left, f"encoder_pooling.1.{x}_proj.{name}", state) for x in "kv"])
        for a, b in _attentions(config):
            x = _take(left, f"{b}.qkv.{name}", state)
            x_H3E = (x.flatten(1) if name == "weight" else x).unflatten(0, (-1, 3, config.head_width))
            ours[f"{a}.attention.branch.query.{name}"] = x_H3E[:, 0].flatten(0, 1)
            ours[f"{a}.attention.branch.keys.{name}"] = x_H3E[:, 1:].transpose(0, 1).flatten(0, 2)
    _nothing_left(left, ours)
    return ours


def to_deepfloyd(state: State, config: UNet) -> dict[str, Tensor]:
    """Return the state dict of [1] for ours.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the denoiser reads no text, which [1] always does.
    """
    _reads_text(config)
    left = dict(state)
    theirs = {b: form.write(_take(left, a, state), config.head_width) for a, b, form in _tensors(config)}
    theirs["encoder_pooling.1.positional_embedding"] = _take(left, "pool.position", state)
    for name in ("weight", "bias"):
        for x, rows in zip("kv", _take(left, f"pool.keys.{name}", state).chunk(2), strict=True):
            theirs[f"encoder_pooling.1.{x}_proj.{name}"] = rows
        for a, b in _attentions(config):
            query, keys = (_take(left, f"{a}.attention.branch.{x}.{name}", state) for x in ("query", "keys"))
            query_H1E = query.unflatten(0, (-1, 1, config.head_width))
            keys_H2E = keys.unflatten(0, (2, -1, config.head_width)).transpose(0, 1)
            joined = torch.cat((query_H1E, keys_H2E), dim=1).flatten(0, 2)
            theirs[f"{b}.qkv.{name}"] = joined[..., None] if name == "weight" else joined
    _nothing_left(left, theirs)
    return theirs


def _tensors(config: UNet) -> Tensors:
    """Yield every tensor but those that are joined: keys and values of the pooling, and those and queries elsewhere."""
    layers = dict(OUTSIDE)
    if config.low:
        layers |= {"level.first": "aug_proj.0", "level.second": "aug_proj.2"}
    if config.text_channels not in (None, config.text_width):
        layers["text"] = "encoder_proj"
    for ours, theirs in layers.items():
        yield from _layer(ours, theirs, KERNEL if ours in CONVOLUTIONS else SAME)
    for ours, theirs, change in _blocks(config):
        for a, b in BLOCK.items():
            yield from _layer(f"{ours}.block.{a}", f"{theirs}.{b}", KERNEL if a in CONVOLUTIONS else SAME)
        if change:
            yield from _layer(f"{ours}.block.skip", f"{theirs}.skip_connection", PIXEL)
    for ours, theirs in _attentions(config):
        yield from _layer(f"{ours}.attention.branch.norm", f"{theirs}.norm")
        yield from _layer(f"{ours}.attention.branch.out", f"{theirs}.proj_out", POINT)
        yield from _layer(f"{ours}.text.norm", f"{theirs}.norm_encoder")
        yield from _layer(f"{ours}.text.keys", f"{theirs}.encoder_kv", KEYS, KEY_BIAS)


def _layer(ours: str, theirs: str, form: Form = SAME, bias: Form = SAME) -> Tensors:
    yield f"{ours}.weight", f"{theirs}.weight", form
    yield f"{ours}.bias", f"{theirs}.bias", bias


def _blocks(config: UNet) -> Iterator[tuple[str, str, bool]]:
    """Yield (ours, theirs, whether the width changes) of every residual block."""
    width, skips = config.width, [config.width]
    for i, (level, resamples) in enumerate(_down(config)):
        n = config.widths[level]
        yield f"net.down.{i}", f"input_blocks.{i + 1}.0", not resamples and n != width
        width = n
        skips.append(n)
    yield "net.middle.0", "middle_block.0", False
    yield "net.middle.1", "middle_block.2", False
    for i, (level, theirs, place) in enumerate(_up(config)):
        n = config.widths[level]
        change = not place and width + skips.pop() != n
        yield f"net.up.{i}", f"output_blocks.{theirs}.{place}", change
        width = n


def _attentions(config: UNet) -> Iterator[tuple[str, str]]:
    """Yield (ours, theirs) of every attention."""
    for i, (level, resamples) in enumerate(_down(config)):
        if 2**level in config.attention and not resamples:
            yield f"net.down.{i}", f"input_blocks.{i + 1}.1"
    yield "net.middle.0", "middle_block.1"
    for i, (level, theirs, place) in enumerate(_up(config)):
        if 2**level in config.attention and not place:
            yield f"net.up.{i}", f"output_blocks.{theirs}.1"


def _down(config: UNet) -> Iterator[tuple[int, bool]]:
    """Yield (level, whether it resamples) of every layer on the way down."""
    last = len(config.mults) - 1
    for level in range(last + 1):
        yield from ((level, False) for _ in range(config.blocks))
        if level < last:
            yield level, True


def _up(config: UNet) -> Iterator[tuple[int, int, int]]:
    """Yield (level, index of their block, place in it: 0 or that of what resamples) of every layer on the way up."""
    theirs = -1
    for level in reversed(range(len(config.mults))):
        for _ in range(config.blocks + 1):
            theirs += 1
            yield level, theirs, 0
        if level:
            yield level, theirs, 2 if 2**level in config.attention else 1


def _reads_text(config: UNet) -> None:
    if config.reads != "text":
        raise ConfigError(f"reads: DeepFloyd's networks read text, and this one reads '{config.reads}'")

"""VQGAN's weights in the authors' public layout, and back.

A training run of theirs saves the networks of the losses too, LPIPS and the discriminator; those are dropped. ruDALL-E
publishes a VQGAN in the same layout.

[1] github.com/CompVis/taming-transformers
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import torch
from torch import Tensor

from zoo.errors import BadWeights, ConfigError, suggest
from zoo_vqgan import configs
from zoo_vqgan.configs import Net, Vqgan

State = Mapping[str, Tensor]

DROPPED = ("loss.",)
"""Prefixes of what a training run of [1] saves beside the model."""
CODES = {"nearest": "quantize.embedding.weight", "gumbel": "quantize.embed.weight"}
"""What [1] calls the codes, by quantiser."""
NAMED = {"nearest": "nearest codes", "gumbel": "Gumbel codes"}
"""What messages call them."""
PUBLIC = {
    "vqgan-f16-1024": configs.vqgan_f16_1024,
    "vqgan-f16-16384": configs.vqgan_f16_16384,
    "vqgan-gumbel-f8-8192": configs.vqgan_gumbel_f8_8192,
}
"""Cards of the published sizes."""
BUFFERS = ("quantiser.codes.shift", "quantiser.counts", "quantiser.updates")
"""What our nearest quantiser keeps beside its codes, for reviving dead ones; theirs does not."""


@attrs.frozen
class Entry:
    """One tensor of ours."""

    ours: str
    theirs: tuple[str, ...]
    """Its names in [1]; of several, ours is all of them in one."""
    matrix: bool = False
    """Ours is the matrix of a 1x1 convolution."""

    def read(self, state: State) -> Tensor:
        """Return our tensor of their state."""
        x = torch.cat([state[name] for name in self.theirs]) if len(self.theirs) > 1 else state[self.theirs[0]]
        return x.flatten(1) if self.matrix else x

    def write(self, x: Tensor) -> dict[str, Tensor]:
        """Return their tensors of ours."""
        x = x[:, :, None, None] if self.matrix else x
        return dict(zip(self.theirs, x.chunk(len(self.theirs)), strict=True))


def from_taming(state: State, config: Vqgan) -> dict[str, Tensor]:
    """Return our state dict for the authors' one.

    Raises:
        BadWeights: a key is missing or left over, or the codes are not as many, or of the other quantiser.
        ConfigError: the config has what their code has not.
    """
    entries = _entries(config)
    state = {name: x for name, x in state.items() if not name.startswith(DROPPED)}
    _check_codes(state, config)
    check_names(state, [name for entry in entries for name in entry.theirs], "VQGAN")
    ours = {entry.ours: entry.read(state) for entry in entries}
    if config.quantiser == "nearest":
        codes = state[CODES["nearest"]]
        zeros = (torch.zeros_like(codes), codes.new_zeros(len(codes)), codes.new_zeros((), dtype=torch.int64))
        ours |= dict(zip(BUFFERS, zeros, strict=True))
    return ours


def to_taming(state: State, config: Vqgan) -> dict[str, Tensor]:
    """Return the authors' state dict for ours.

    Raises:
        BadWeights: a key is missing or left over.
        ConfigError: the config has what their code has not.
    """
    entries = _entries(config)
    nearest = config.quantiser == "nearest"
    check_names(state, [entry.ours for entry in entries] + list(BUFFERS if nearest else ()), "VQGAN")
    theirs = {name: x for entry in entries for name, x in entry.write(state[entry.ours]).items()}
    if nearest:  # a revived code has moved away from its parameter
        theirs[CODES["nearest"]] = theirs[CODES["nearest"]] + state["quantiser.codes.shift"]
    return theirs


def check_names(state: State, wanted: list[str], model: str) -> None:
    """Refuse a state dict that has not just these names; raises BadWeights, which says which model's weights."""
    known, given = set(wanted), set(state)
    for name in wanted:
        if name not in given:
            raise BadWeights(f"{model} weights lack '{name}'{suggest(name, given - known)}")
    for name in state:
        if name not in known:
            raise BadWeights(f"{model} weights have an unexpected '{name}'{suggest(name, known - given)}")


def _check_codes(state: State, config: Vqgan) -> None:
    """Name the card to import instead, where weights are of another one."""
    own = (config.quantiser, config.vocab_size)
    found = [(kind, len(state[name])) for kind, name in CODES.items() if name in state]
    if len(found) != 1 or found[0] == own:
        return  # what is missing or left over is named elsewhere
    kind, count = found[0]
    cards = {name: make() for name, make in PUBLIC.items()}
    fits = next((name for name, c in cards.items() if (c.quantiser, c.vocab_size) == found[0]), None)
    hint = f"zoo import {fits} PATH" if fits else f"--set vocab_size={count} --set quantiser={kind}"
    name = next((name for name, c in cards.items() if (c.quantiser, c.vocab_size, c.net) == (*own, config.net)), None)
    theirs, ours = f"{count} codes", f"{config.vocab_size}"
    if kind != config.quantiser:
        theirs, ours = f"{count} {NAMED[kind]}", f"{config.vocab_size} {NAMED[config.quantiser]}"
    raise BadWeights(f"these weights have {theirs}; {name or 'this config'} has {ours}: {hint}")


def _entries(config: Vqgan) -> list[Entry]:
    check_groups(config.net)
    entries = list(network(config.net))
    if config.quantiser == "gumbel":
        entries += [*_layer("quantiser.proj", "quantize.proj", matrix=True)]
        entries += [Entry("quantiser.embed.weight", (CODES["gumbel"],))]
    else:
        entries += [Entry("quantiser.codes.weight", (CODES["nearest"],))]
    return entries


def check_groups(net: Net) -> None:
    """Refuse what the authors' code has not; raises ConfigError."""
    if net.groups != 32:
        raise ConfigError(f"net.groups: is {net.groups}; the authors' layout has it fixed at 32")


def network(net: Net) -> Iterator[Entry]:
    """Yield what VQGAN and the KL autoencoder both have: all but the quantiser."""
    yield from _encoder(net)
    yield from _layer("before", "quant_conv")
    yield from _layer("after", "post_quant_conv")
    yield from _decoder(net)


def _encoder(net: Net) -> Iterator[Entry]:
    yield from _ends("encoder")
    n_in = net.channels
    for i, width in enumerate(net.widths):
        resample = "downsample" if i < len(net.widths) - 1 else None
        yield from _level(f"encoder.levels.{i}", f"encoder.down.{i}", n_in, width, net.blocks, 2**i, net, resample)
        n_in = width


def _decoder(net: Net) -> Iterator[Entry]:
    """Their levels are numbered from full resolution, ours from the first to run."""
    yield from _ends("decoder")
    n_in = net.widths[-1]
    for place, (i, width) in enumerate(reversed(list(enumerate(net.widths)))):
        ours, theirs, resample = f"decoder.levels.{place}", f"decoder.up.{i}", "upsample" if i else None
        yield from _level(ours, theirs, n_in, width, net.blocks + 1, 2**i, net, resample)
        n_in = width


def _ends(side: str) -> Iterator[Entry]:
    """What both sides have: the first and last layers, and the middle."""
    yield from _layer(f"{side}.input", f"{side}.conv_in")
    yield from _block(f"{side}.middle.0", f"{side}.mid.block_1", False)
    yield from _attention(f"{side}.middle.1", f"{side}.mid.attn_1")
    yield from _block(f"{side}.middle.2", f"{side}.mid.block_2", False)
    yield from _layer(f"{side}.norm", f"{side}.norm_out")
    yield from _layer(f"{side}.output", f"{side}.conv_out")


def _level(
    ours: str, theirs: str, n_in: int, width: int, blocks: int, reduction: int, net: Net, resample: str | None
) -> Iterator[Entry]:
    attends = reduction in net.attention
    step = 1 + attends
    for i in range(blocks):
        yield from _block(f"{ours}.{step * i}", f"{theirs}.block.{i}", i == 0 and n_in != width)
        if attends:
            yield from _attention(f"{ours}.{step * i + 1}", f"{theirs}.attn.{i}")
    if resample:
        yield from _layer(f"{ours}.{step * blocks}", f"{theirs}.{resample}.conv")


def _block(ours: str, theirs: str, widens: bool) -> Iterator[Entry]:
    for place, name in ((0, "norm1"), (2, "conv1"), (3, "norm2"), (5, "conv2")):
        yield from _layer(f"{ours}.branch.{place}", f"{theirs}.{name}")
    if widens:
        yield from _layer(f"{ours}.skip", f"{theirs}.nin_shortcut")


def _attention(ours: str, theirs: str) -> Iterator[Entry]:
    yield from _layer(f"{ours}.branch.norm", f"{theirs}.norm")
    yield from _layer(f"{ours}.branch.qkv", f"{theirs}.q", f"{theirs}.k", f"{theirs}.v", matrix=True)
    yield from _layer(f"{ours}.branch.out", f"{theirs}.proj_out", matrix=True)


def _layer(ours: str, *theirs: str, matrix: bool = False) -> Iterator[Entry]:
    for leaf in ("weight", "bias"):
        yield Entry(f"{ours}.{leaf}", tuple(f"{name}.{leaf}" for name in theirs), matrix and leaf == "weight")
